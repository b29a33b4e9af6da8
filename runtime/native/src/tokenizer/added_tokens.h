// Tokens that are found in the text before the model sees it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tokenizer/components.h"

namespace cpuc {

// A stretch of text: a token that was found, or text that is still to be split.
struct Stretch {
  Text text;
  std::optional<Token> token;
};

class AddedTokens {
 public:
  // `tokens` is the list `added_tokens` of tokenizer.json. The library ignores the ids in it and gives out its own.
  AddedTokens(const nlohmann::json& tokens, const SubwordModel& model, const Normalizer* normalizer);

  // The text, split at the tokens and normalised in between; none is empty.
  std::vector<Stretch> extract(Text text, const Normalizer* normalizer) const;

  std::optional<int64_t> token_to_id(std::string_view token) const;
  // The token as the normalizer leaves it.
  std::optional<std::string> id_to_token(int64_t id) const;
  bool is_special(const std::string& token) const { return special_.count(token) != 0; }

 private:
  struct Added {
    std::string content;
    bool single_word, lstrip, rstrip, normalized, special;
    bool operator==(const Added& other) const;
  };

  // Patterns by their first characters.
  struct Node {
    std::map<char32_t, size_t> next;
    std::optional<int64_t> id;
  };
  using Trie = std::vector<Node>;

  struct Match {
    size_t begin, end;
    int64_t id;
  };

  void add(const Added& token, const SubwordModel& model, const Normalizer* normalizer, int64_t& next_id);
  void build_tries();
  static void insert(Trie& trie, const Text& pattern, int64_t id, const std::string& content);
  static std::optional<Match> longest_at(const Trie& trie, const Text& text, size_t begin);
  static bool whole_word(const Text& text, const Match& match);
  std::vector<Match> find(const Trie& trie, const Text& text) const;
  void split(const Trie& trie, const Text& text, std::vector<Stretch>& stretches) const;

  std::unordered_map<std::string, int64_t> ids_;
  std::map<int64_t, Added> tokens_;
  std::map<int64_t, std::string> normalized_;  // where it is not the content
  std::unordered_set<std::string> special_;
  Trie trie_, normalized_trie_;
};

}  // namespace cpuc
