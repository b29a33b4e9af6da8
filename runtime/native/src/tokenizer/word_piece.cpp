// WordPiece: the model and the decoder.
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "error.h"
#include "tokenizer/components.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

class WordPiece : public SubwordModel {
 public:
  explicit WordPiece(const Fields& fields)
      : unknown_(fields.string("unk_token")),
        prefix_(fields.string("continuing_subword_prefix")),
        longest_(static_cast<size_t>(fields.unsigned32("max_input_chars_per_word"))) {
    const Fields vocabulary = fields.object("vocab");
    const nlohmann::json& entries = fields.at("vocab");
    ids_.reserve(entries.size());
    tokens_.reserve(entries.size());
    for (const auto& [token, value] : entries.items()) {
      if (!value.is_number_unsigned()) vocabulary.fail("the id of '" + token + "' must be an integer from 0 to 4294967295");
      const int64_t id = to_id(value, vocabulary.where());
      ids_.emplace(token, id);
      tokens_.emplace(id, token);
    }
  }

  // The longest piece that the vocabulary has, then the longest of the rest, and so on; the unknown token if that fails.
  std::vector<Token> tokenize(const Text& word) const override {
    if (word.size() > longest_) return unknown(word);
    std::vector<Token> tokens;
    for (size_t begin = 0; begin < word.size();) {
      std::string piece = begin == 0 ? "" : prefix_;
      std::vector<size_t> sizes;  // of the piece, by how many characters of the word it has
      for (size_t i = begin; i < word.size(); ++i) {
        sizes.push_back(piece.size());
        unicode::append(piece, word[i].value);
      }
      size_t end = word.size();
      auto found = ids_.find(piece);
      while (found == ids_.end() && --end > begin) {
        piece.resize(sizes[end - begin]);
        found = ids_.find(piece);
      }
      if (found == ids_.end()) return unknown(word);
      tokens.push_back({found->second, piece, begin, end});
      begin = end;
    }
    return tokens;
  }

  std::optional<int64_t> token_to_id(std::string_view token) const override {
    const auto found = ids_.find(std::string(token));
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }

  std::optional<std::string> id_to_token(int64_t id) const override {
    const auto found = tokens_.find(id);
    return found == tokens_.end() ? std::nullopt : std::optional(found->second);
  }

  size_t size() const override { return ids_.size(); }
  std::string continuing_subword_prefix() const override { return prefix_; }

 private:
  std::vector<Token> unknown(const Text& word) const {
    const auto id = token_to_id(unknown_);
    if (!id) throw Error(Kind::bundle, "WordPiece error: Missing [UNK] token from the vocabulary");
    return {{*id, unknown_, 0, word.size()}};
  }

  std::string unknown_, prefix_;
  size_t longest_;
  std::unordered_map<std::string, int64_t> ids_;
  std::unordered_map<int64_t, std::string> tokens_;
};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

class WordPieceDecoder : public Decoder {
 public:
  explicit WordPieceDecoder(const Fields& fields) : prefix_(fields.string("prefix")), tidy_(fields.boolean("cleanup")) {}

  std::string decode(const std::vector<std::string>& tokens) const override {
    std::string text;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const bool continued = i != 0 && tokens[i].compare(0, prefix_.size(), prefix_) == 0;
      std::string token = i == 0 ? tokens[i] : continued ? tokens[i].substr(prefix_.size()) : " " + tokens[i];
      if (tidy_) tidy(token);
      text += token;
    }
    return text;
  }

 private:
  // Within a token and the space before it, in this order.
  static void tidy(std::string& token) {
    static constexpr std::pair<std::string_view, std::string_view> changes[] = {
        {" .", "."},     {" ?", "?"},     {" !", "!"},           {" ,", ","},   {" ' ", "'"},  {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (const auto& [from, to] : changes) replace_all(token, from, to);
  }

  std::string prefix_;
  bool tidy_;
};

}  // namespace

std::unique_ptr<const SubwordModel> make_model(const Fields& fields) {
  // The first files of this format do not say which model it is; no other model has this field.
  const bool unnamed = !fields.has("type") && fields.has("max_input_chars_per_word");
  if (unnamed || fields.type() == "WordPiece") return std::make_unique<WordPiece>(fields);
  fields.refuse();
}

std::unique_ptr<const Decoder> make_decoder(const Fields& fields) {
  if (fields.type() == "WordPiece") return std::make_unique<WordPieceDecoder>(fields);
  fields.refuse();
}

}  // namespace cpuc
