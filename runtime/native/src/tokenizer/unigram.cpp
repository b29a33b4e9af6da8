// The model Unigram.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "error.h"
#include "tokenizer/byte_trie.h"
#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"
#include "tokenizer/vocabulary.h"

namespace cpuc {

namespace {

// A text as UTF-8, and where its characters begin there.
struct Bytes {
  explicit Bytes(const Text& text) {
    starts.reserve(text.size() + 1);
    for (const Character& each : text) {
      starts.push_back(utf8.size());
      unicode::append(utf8, each.value);
    }
    starts.push_back(utf8.size());
  }

  std::string utf8;
  std::vector<size_t> starts;
};

struct Scored {
  std::string value;
  double score;
};

std::vector<Scored> read_pieces(const Fields& fields) {
  std::vector<Scored> pieces;
  for (const nlohmann::json& value : fields.array("vocab")) {
    if (!value.is_array() || value.size() != 2 || !value[0].is_string() || !value[1].is_number())
      fields.fail("field 'vocab' must be a list of pieces with their scores");
    pieces.push_back({value[0].get<std::string>(), value[1].get<double>()});
  }
  return pieces;
}

ByteTrie trie_of(const std::vector<Scored>& pieces) {
  std::vector<std::pair<std::string_view, uint32_t>> entries;
  entries.reserve(pieces.size());
  for (const Scored& piece : pieces) entries.emplace_back(piece.value, static_cast<uint32_t>(entries.size()));
  return ByteTrie(std::move(entries));
}

class Unigram : public SubwordModel {
 public:
  explicit Unigram(const Fields& fields)
      : pieces_(read_pieces(fields)), trie_(trie_of(pieces_)), bytes_(fields.boolean("byte_fallback", false)) {
    if (fields.has("unk_id")) {
      unknown_ = fields.unsigned32("unk_id");
      if (static_cast<size_t>(*unknown_) >= pieces_.size()) fields.fail("field 'unk_id' is larger than the vocabulary");
    }
    double lowest = std::numeric_limits<double>::infinity();
    for (const Scored& piece : pieces_) lowest = std::min(lowest, piece.score);
    unknown_score_ = lowest - 10;
  }

  std::vector<Token> tokenize(const Text& word) const override {
    const Bytes bytes(word);
    std::vector<Token> tokens;
    for (const auto& [begin, end] : spans_of(best_path(bytes), bytes)) add(bytes, begin, end, tokens);
    return tokens;
  }

  std::optional<int64_t> token_to_id(std::string_view token) const override { return trie_.find(token); }

  std::optional<std::string> id_to_token(int64_t id) const override {
    const auto index = static_cast<size_t>(id);
    return index < pieces_.size() ? std::optional(pieces_[index].value) : std::nullopt;
  }

  size_t size() const override { return pieces_.size(); }
  std::string continuing_subword_prefix() const override { return ""; }

 private:
  // The last piece of the best path to a byte.
  struct Step {
    int64_t id;
    double score;
    size_t begin;
  };
  static constexpr size_t nowhere = std::numeric_limits<size_t>::max();
  using Spans = std::vector<std::pair<size_t, size_t>>;  // of characters

  std::vector<Step> best_path(const Bytes& bytes) const {
    const std::string_view text = bytes.utf8;
    std::vector<Step> steps(text.size() + 1, {0, 0, nowhere});
    for (size_t i = 0; i + 1 < bytes.starts.size(); ++i) {
      const size_t begin = bytes.starts[i], width = bytes.starts[i + 1] - begin;
      const double score = steps[begin].score;
      bool single = false;
      trie_.for_each_prefix(text.substr(begin), [&](size_t size, uint32_t id) {
        improve(steps[begin + size], {id, pieces_[id].score + score, begin});
        single = single || size == width;
      });
      Step& next = steps[begin + width];
      if (!single && is_better(unknown_score_ + score, next)) next = {unknown_id(), unknown_score_ + score, begin};
    }
    return steps;
  }

  static bool is_better(double score, const Step& step) { return step.begin == nowhere || score > step.score; }

  static void improve(Step& step, const Step& other) {
    if (is_better(other.score, step)) step = other;
  }

  // The pieces of the path. Neighbours that are not known are one piece.
  Spans spans_of(const std::vector<Step>& steps, const Bytes& bytes) const {
    const auto character = [&](size_t offset) {
      const auto found = std::lower_bound(bytes.starts.begin(), bytes.starts.end(), offset);
      return static_cast<size_t>(found - bytes.starts.begin());
    };
    Spans spans;
    bool fuse = false;
    for (size_t end = bytes.utf8.size(); end > 0; end = steps[end].begin) {
      const size_t begin = character(steps[end].begin);
      const bool unknown = steps[end].id == unknown_;
      if (unknown && fuse)
        spans.back().first = begin;
      else
        spans.emplace_back(begin, character(end));
      fuse = unknown;
    }
    std::reverse(spans.begin(), spans.end());
    return spans;
  }

  void add(const Bytes& bytes, size_t begin, size_t end, std::vector<Token>& tokens) const {
    std::string value = bytes.utf8.substr(bytes.starts[begin], bytes.starts[end] - bytes.starts[begin]);
    if (const auto id = trie_.find(value)) {
      tokens.push_back({*id, std::move(value), begin, end});
      return;
    }
    std::vector<Token> fallback;
    for (const char byte : value) {
      const std::string token = byte_token(byte);
      const auto id = bytes_ ? trie_.find(token) : std::nullopt;
      if (!id) {
        tokens.push_back({unknown_id(), std::move(value), begin, end});
        return;
      }
      fallback.push_back({*id, token, begin, end});
    }
    tokens.insert(tokens.end(), fallback.begin(), fallback.end());
  }

  int64_t unknown_id() const {
    if (!unknown_) throw Error(Kind::bundle, "Encountered an unknown token but `unk_id` is missing");
    return *unknown_;
  }

  std::vector<Scored> pieces_;
  ByteTrie trie_;
  bool bytes_;
  std::optional<int64_t> unknown_;
  double unknown_score_;
};

}  // namespace

std::unique_ptr<const SubwordModel> unigram(const Fields& fields) { return std::make_unique<Unigram>(fields); }

}  // namespace cpuc
