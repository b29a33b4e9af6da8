// The model BPE.
#include <limits>
#include <nlohmann/json.hpp>
#include <queue>
#include <tuple>
#include <unordered_map>

#include "error.h"
#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"
#include "tokenizer/vocabulary.h"

namespace cpuc {

namespace {

// What two neighbours become; the one with the lowest rank in a word is done first.
struct Merge {
  uint32_t rank;
  int64_t id;
};

class Merges {
 public:
  void add(int64_t left, int64_t right, Merge merge) { merges_[key(left, right)] = merge; }

  const Merge* find(int64_t left, int64_t right) const {
    const auto found = merges_.find(key(left, right));
    return found == merges_.end() ? nullptr : &found->second;
  }

 private:
  // Ids have 32 bits.
  static uint64_t key(int64_t left, int64_t right) { return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right); }

  std::unordered_map<uint64_t, Merge> merges_;
};

// A word on its way from characters to tokens: a list whose neighbours become one, the best first.
class Word {
 public:
  struct Symbol {
    int64_t id;
    size_t size;  // in bytes, 0 once it is part of the one before
    size_t previous, next;
  };

  static constexpr size_t none = std::numeric_limits<size_t>::max();

  void add(int64_t id, size_t size) {
    const size_t count = symbols_.size();
    if (count != 0) symbols_.back().next = count;
    symbols_.push_back({id, size, count == 0 ? none : count - 1, none});
  }

  void merge_all(const Merges& merges) {
    for (size_t i = 0; i + 1 < symbols_.size(); ++i) propose(merges, i);
    while (!proposals_.empty()) {
      const auto [rank, at, id] = proposals_.top();
      proposals_.pop();
      Symbol& left = symbols_[at];
      if (left.size == 0 || left.next == none) continue;
      // One of the two may be another by now.
      const Merge* merge = merges.find(left.id, symbols_[left.next].id);
      if (!merge || merge->id != id) continue;
      join(left, at, id);
      if (left.previous != none) propose(merges, left.previous);
      if (left.next != none) propose(merges, at);
    }
  }

  const std::vector<Symbol>& symbols() const { return symbols_; }

 private:
  // By rank, then from left to right.
  using Proposal = std::tuple<uint32_t, size_t, int64_t>;

  void propose(const Merges& merges, size_t at) {
    const Symbol& left = symbols_[at];
    if (const Merge* merge = merges.find(left.id, symbols_[left.next].id)) proposals_.push({merge->rank, at, merge->id});
  }

  void join(Symbol& left, size_t at, int64_t id) {
    Symbol& right = symbols_[left.next];
    left.id = id;
    left.size += right.size;
    left.next = right.next;
    right.size = 0;
    if (left.next != none) symbols_[left.next].previous = at;
  }

  std::vector<Symbol> symbols_;
  std::priority_queue<Proposal, std::vector<Proposal>, std::greater<>> proposals_;
};

// Finds the characters of a text that a range of its UTF-8 touches; ranges come in order.
class Characters {
 public:
  explicit Characters(const Text& text) : text_(text) {}

  // The one with the byte at `offset`.
  size_t at(size_t offset) {
    while (end_ <= offset) end_ += size_of(text_[next_++].value);
    return next_ - 1;
  }

  static size_t size_of(char32_t character) {
    return character < 0x80 ? 1 : character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
  }

 private:
  const Text& text_;
  size_t next_ = 0, end_ = 0;  // of the characters seen
};

class BytePairEncoding : public SubwordModel {
 public:
  explicit BytePairEncoding(const Fields& fields)
      : vocabulary_(fields, "vocab"),
        fuse_(fields.boolean("fuse_unk", false)),
        bytes_(fields.boolean("byte_fallback", false)),
        whole_words_(fields.boolean("ignore_merges", false)) {
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (fields.has(name) && !fields.string(name).empty()) fields.refuse(name);
    if (fields.has("dropout") && fields.at("dropout") != 0) fields.refuse("dropout");
    if (fields.has("unk_token")) unknown_ = fields.string("unk_token");
    read_merges(fields);
  }

  std::vector<Token> tokenize(const Text& word) const override {
    if (whole_words_) {
      std::string whole = to_utf8(word);
      if (const auto id = vocabulary_.id(whole)) return {{*id, std::move(whole), 0, word.size()}};
    }
    Word symbols = symbols_of(word);
    symbols.merge_all(merges_);
    std::vector<Token> tokens;
    Characters characters(word);
    size_t offset = 0;
    for (const Word::Symbol& symbol : symbols.symbols()) {
      if (symbol.size == 0) continue;
      const size_t begin = characters.at(offset);
      offset += symbol.size;
      tokens.push_back({symbol.id, *vocabulary_.token(symbol.id), begin, characters.at(offset - 1) + 1});
    }
    return tokens;
  }

  std::optional<int64_t> token_to_id(std::string_view token) const override { return vocabulary_.id(std::string(token)); }
  std::optional<std::string> id_to_token(int64_t id) const override { return vocabulary_.token(id); }
  size_t size() const override { return vocabulary_.size(); }
  std::string continuing_subword_prefix() const override { return ""; }

 private:
  using Pair = std::pair<std::string, std::string>;

  void read_merges(const Fields& fields) {
    uint32_t rank = 0;
    for (const nlohmann::json& value : fields.array("merges")) {
      const std::optional<Pair> merge = pair_of(fields, value);
      if (!merge) continue;
      const auto& [left, right] = *merge;
      const int64_t first = known(fields, left), second = known(fields, right);
      merges_.add(first, second, {rank++, known(fields, left + right)});
    }
  }

  // Two strings, or one with a space between them; a line of old files is a comment.
  static std::optional<Pair> pair_of(const Fields& fields, const nlohmann::json& value) {
    if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string())
      return Pair(value[0].get<std::string>(), value[1].get<std::string>());
    if (!value.is_string()) fields.fail("field 'merges' must be a list of pairs");
    const std::string line = value.get<std::string>();
    if (line.compare(0, 8, "#version") == 0) return std::nullopt;
    const size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos)
      fields.fail("the merge '" + line + "' must be two tokens with a space between them");
    return Pair(line.substr(0, space), line.substr(space + 1));
  }

  int64_t known(const Fields& fields, const std::string& token) const {
    const auto id = vocabulary_.id(token);
    if (!id) fields.fail("token '" + token + "' of the merges is not in the vocabulary");
    return *id;
  }

  // The characters' tokens. The library leaves out what is not known if there is no token for that, and offsets of what
  // comes after are too low by that much.
  Word symbols_of(const Text& text) const {
    Word word;
    std::optional<Word::Symbol> unknown;  // those before, if they are not added yet
    const auto flush = [&] {
      if (unknown) word.add(unknown->id, unknown->size);
      unknown.reset();
    };
    std::string character;
    for (const Character& each : text) {
      character.clear();
      unicode::append(character, each.value);
      if (const auto id = vocabulary_.id(character)) {
        flush();
        word.add(*id, character.size());
      } else if (bytes_ && add_bytes(word, character)) {
        // The library adds them before what is not known and came first.
      } else if (unknown_) {
        if (unknown && fuse_) {
          unknown->size += character.size();
          continue;
        }
        flush();
        unknown = {unknown_id(), character.size(), 0, 0};
      }
    }
    flush();
    return word;
  }

  bool add_bytes(Word& word, const std::string& character) const {
    std::vector<int64_t> ids;
    for (const char byte : character) {
      const auto id = vocabulary_.id(byte_token(byte));
      if (!id) return false;
      ids.push_back(*id);
    }
    for (const int64_t id : ids) word.add(id, 1);
    return true;
  }

  int64_t unknown_id() const {
    const auto id = vocabulary_.id(*unknown_);
    if (!id) throw Error(Kind::bundle, "Unk token `" + *unknown_ + "` not found in the vocabulary");
    return *id;
  }

  Vocabulary vocabulary_;
  Merges merges_;
  std::optional<std::string> unknown_;
  bool fuse_, bytes_, whole_words_;
};

}  // namespace

std::unique_ptr<const SubwordModel> byte_pair_encoding(const Fields& fields) {
  return std::make_unique<BytePairEncoding>(fields);
}

}  // namespace cpuc
