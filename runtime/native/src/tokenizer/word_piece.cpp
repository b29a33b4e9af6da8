// WordPiece: the model and the decoder.
#include "error.h"
#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"
#include "tokenizer/vocabulary.h"

namespace cpuc {

namespace {

class WordPiece : public SubwordModel {
 public:
  explicit WordPiece(const Fields& fields)
      : unknown_(fields.string("unk_token")),
        prefix_(fields.string("continuing_subword_prefix")),
        longest_(static_cast<size_t>(fields.unsigned32("max_input_chars_per_word"))),
        vocabulary_(fields, "vocab") {}

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
      auto id = vocabulary_.id(piece);
      while (!id && --end > begin) {
        piece.resize(sizes[end - begin]);
        id = vocabulary_.id(piece);
      }
      if (!id) return unknown(word);
      tokens.push_back({*id, piece, begin, end});
      begin = end;
    }
    return tokens;
  }

  std::optional<int64_t> token_to_id(std::string_view token) const override { return vocabulary_.id(std::string(token)); }
  std::optional<std::string> id_to_token(int64_t id) const override { return vocabulary_.token(id); }
  size_t size() const override { return vocabulary_.size(); }
  std::string continuing_subword_prefix() const override { return prefix_; }

 private:
  std::vector<Token> unknown(const Text& word) const {
    const auto id = vocabulary_.id(unknown_);
    if (!id) throw Error(Kind::bundle, "WordPiece error: Missing [UNK] token from the vocabulary");
    return {{*id, unknown_, 0, word.size()}};
  }

  std::string unknown_, prefix_;
  size_t longest_;
  Vocabulary vocabulary_;
};

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

class WordPieceDecoder : public Decoder {
 public:
  explicit WordPieceDecoder(const Fields& fields) : prefix_(fields.string("prefix")), tidy_(fields.boolean("cleanup")) {}

  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i != 0) {
        const bool continued = tokens[i].compare(0, prefix_.size(), prefix_) == 0;
        tokens[i] = continued ? tokens[i].substr(prefix_.size()) : " " + tokens[i];
      }
      if (tidy_) tidy(tokens[i]);
    }
    return tokens;
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

std::unique_ptr<const SubwordModel> word_piece(const Fields& fields) { return std::make_unique<WordPiece>(fields); }

std::unique_ptr<const Decoder> word_piece_decoder(const Fields& fields) {
  return std::make_unique<WordPieceDecoder>(fields);
}

}  // namespace cpuc
