#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "error.h"
#include "tokenizer/unicode.h"

namespace cpuc {

bool AddedTokens::Added::operator==(const Added& other) const {
  return content == other.content && single_word == other.single_word && lstrip == other.lstrip && rstrip == other.rstrip &&
         normalized == other.normalized && special == other.special;
}

AddedTokens::AddedTokens(const nlohmann::json& tokens, const SubwordModel& model, const Normalizer* normalizer) {
  auto next_id = static_cast<int64_t>(model.size());
  for (const nlohmann::json& value : tokens) {
    const Fields fields(value, "tokenizer.json.added_tokens");
    fields.unsigned32("id");
    const Added token{fields.string("content"), fields.boolean("single_word"), fields.boolean("lstrip"),
                      fields.boolean("rstrip"), fields.boolean("normalized"),  fields.boolean("special")};
    if (!token.content.empty()) add(token, model, normalizer, next_id);
  }
  build_tries();
}

void AddedTokens::add(const Added& token, const SubwordModel& model, const Normalizer* normalizer, int64_t& next_id) {
  const auto known = ids_.find(token.content);
  if (known != ids_.end() && tokens_.at(known->second) == token) return;
  auto id = known != ids_.end() ? std::optional(known->second) : model.token_to_id(token.content);
  if (!id) id = next_id++;
  if (token.normalized && normalizer) {
    Text text = to_text(token.content);
    normalizer->normalize(text);
    const std::string normalized = to_utf8(text);
    if (normalized != token.content) normalized_[*id] = normalized;
  }
  ids_[token.content] = *id;
  if (token.special) special_.insert(token.content);
  tokens_[*id] = token;
}

void AddedTokens::build_tries() {
  for (const auto& [id, token] : tokens_) {
    const auto found = normalized_.find(id);
    const bool changed = token.normalized && found != normalized_.end();
    insert(token.normalized ? normalized_trie_ : trie_, to_text(changed ? found->second : token.content), id, token.content);
  }
}

void AddedTokens::insert(Trie& trie, const Text& pattern, int64_t id, const std::string& content) {
  const auto fail = [&](const char* what) {
    throw Error(Kind::bundle, "tokenizer.json.added_tokens: '" + content + "' " + what + ": remove it from the tokenizer");
  };
  // The library would find it between all characters.
  if (pattern.empty()) fail("is empty once normalised");
  if (trie.empty()) trie.emplace_back();
  size_t node = 0;
  for (const Character& each : pattern) {
    const auto [next, added] = trie[node].next.emplace(each.value, trie.size());
    node = next->second;
    if (added) trie.emplace_back();
  }
  // The library would take either of the two, by chance.
  if (trie[node].id) fail("is the same as another added token once normalised");
  trie[node].id = id;
}

std::optional<AddedTokens::Match> AddedTokens::longest_at(const Trie& trie, const Text& text, size_t begin) {
  std::optional<Match> longest;
  size_t node = 0;
  for (size_t at = begin; at < text.size(); ++at) {
    const auto next = trie[node].next.find(text[at].value);
    if (next == trie[node].next.end()) break;
    node = next->second;
    if (trie[node].id) longest = Match{begin, at + 1, *trie[node].id};
  }
  return longest;
}

bool AddedTokens::whole_word(const Text& text, const Match& match) {
  const bool before = match.begin > 0 && unicode::is_word(text[match.begin - 1].value);
  const bool after = match.end < text.size() && unicode::is_word(text[match.end].value);
  return !before && !after;
}

// The tokens in a text, from left to right, with the spaces that they take along.
std::vector<AddedTokens::Match> AddedTokens::find(const Trie& trie, const Text& text) const {
  std::vector<Match> matches;
  size_t taken = 0;
  for (size_t at = 0; at < text.size();) {
    std::optional<Match> match = longest_at(trie, text, at);
    at = match ? match->end : at + 1;
    if (!match) continue;
    const Added& token = tokens_.at(match->id);
    if (token.single_word && !whole_word(text, *match)) continue;
    if (token.lstrip) {
      while (match->begin > 0 && unicode::is_space(text[match->begin - 1].value)) --match->begin;
      // The token before may have taken them already.
      match->begin = std::max(match->begin, taken);
    }
    if (token.rstrip)
      while (match->end < text.size() && unicode::is_space(text[match->end].value)) ++match->end;
    if (match->begin > match->end)
      throw Error(Kind::bundle, "AddedVocabulary bad split");  // a token of spaces only, after one that takes spaces
    taken = match->end;
    matches.push_back(*match);
  }
  return matches;
}

void AddedTokens::split(const Trie& trie, const Text& text, std::vector<Stretch>& stretches) const {
  const auto slice = [&](size_t begin, size_t end) {
    return Text(text.begin() + static_cast<std::ptrdiff_t>(begin), text.begin() + static_cast<std::ptrdiff_t>(end));
  };
  size_t done = 0;
  if (!trie.empty())
    for (const Match& match : find(trie, text)) {
      if (done < match.begin) stretches.push_back({slice(done, match.begin), std::nullopt});
      done = match.end;
      if (match.begin == match.end) continue;
      Text found = slice(match.begin, match.end);
      const Token token{match.id, to_utf8(found), 0, found.size()};
      stretches.push_back({std::move(found), token});
    }
  if (done < text.size()) stretches.push_back({slice(done, text.size()), std::nullopt});
}

std::vector<Stretch> AddedTokens::extract(Text text, const Normalizer* normalizer) const {
  std::vector<Stretch> raw, stretches;
  split(trie_, text, raw);
  for (Stretch& each : raw) {
    if (each.token) {
      stretches.push_back(std::move(each));
      continue;
    }
    if (normalizer) normalizer->normalize(each.text);
    split(normalized_trie_, each.text, stretches);
  }
  return stretches;
}

std::optional<int64_t> AddedTokens::token_to_id(std::string_view token) const {
  const auto found = ids_.find(std::string(token));
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<std::string> AddedTokens::id_to_token(int64_t id) const {
  const auto normalized = normalized_.find(id);
  if (normalized != normalized_.end()) return normalized->second;
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? std::nullopt : std::optional(found->second.content);
}

}  // namespace cpuc
