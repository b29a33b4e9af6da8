// ByteLevel: the pre-tokenizer, the normalizer, the decoder and the post-processor, and RobertaProcessing.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

// Printable characters of Latin-1 stand for themselves, the other bytes for what follows U+00FF.
std::array<char32_t, 256> make_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

const std::array<char32_t, 256>& alphabet() {
  static const std::array<char32_t, 256> characters = make_alphabet();
  return characters;
}

// Where words end by GPT-2's regular expression, which matches every character:
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
class WordScanner {
 public:
  explicit WordScanner(const Text& text) : text_(text) {}

  size_t end_of_word(size_t begin) const {
    if (const size_t size = contraction(begin)) return begin + size;
    const size_t first = at(begin) == ' ' && begin + 1 < text_.size() && kind(begin + 1) != Kind::space ? begin + 1 : begin;
    const size_t end = end_of_run(first);
    if (kind(first) != Kind::space || end == text_.size() || end == begin + 1) return end;
    return end - 1;  // the last space belongs to the next word
  }

 private:
  enum class Kind { space, letter, number, other };

  char32_t at(size_t index) const { return index < text_.size() ? text_[index].value : 0; }

  Kind kind(size_t index) const {
    const char32_t character = text_[index].value;
    if (unicode::is_letter(character)) return Kind::letter;
    if (unicode::is_space(character)) return Kind::space;
    return unicode::is_number(character) ? Kind::number : Kind::other;
  }

  size_t end_of_run(size_t begin) const {
    const Kind first = kind(begin);
    size_t end = begin + 1;
    while (end < text_.size() && kind(end) == first) ++end;
    return end;
  }

  size_t contraction(size_t begin) const {
    if (at(begin) != '\'') return 0;
    const char32_t first = at(begin + 1), second = at(begin + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    return (second == 'e' && (first == 'r' || first == 'v')) || (second == 'l' && first == 'l') ? 3 : 0;
  }

  const Text& text_;
};

class ByteLevel : public PreTokenizer {
 public:
  explicit ByteLevel(const Fields& fields)
      : prefix_(fields.boolean("add_prefix_space")), split_(fields.boolean("use_regex", true)) {
    fields.boolean("trim_offsets");
  }

  std::vector<Text> split(const Text& text) const override {
    if (text.empty()) return {};
    Text whole = text;
    if (prefix_ && whole.front().value != ' ') whole.insert(whole.begin(), {' ', whole.front().origin});
    std::vector<Text> words;
    const WordScanner scanner(whole);
    for (size_t begin = 0; begin < whole.size();) {
      const size_t end = split_ ? scanner.end_of_word(begin) : whole.size();
      words.emplace_back(whole.begin() + static_cast<std::ptrdiff_t>(begin), whole.begin() + static_cast<std::ptrdiff_t>(end));
      to_byte_characters(words.back());
      begin = end;
    }
    return words;
  }

 private:
  bool prefix_, split_;
};

// The bytes that characters stand for. A token with any other character is text already.
class ByteLevelDecoder : public Decoder {
 public:
  ByteLevelDecoder() {
    for (size_t byte = 0; byte < 256; ++byte) bytes_[alphabet()[byte]] = static_cast<char>(byte);
  }

  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    std::string text;
    for (const std::string& token : tokens) text += bytes_of(token);
    return {unicode::to_valid(text)};
  }

 private:
  std::string bytes_of(const std::string& token) const {
    std::string bytes;
    for (const char32_t character : unicode::decode(token)) {
      const auto found = bytes_.find(character);
      if (found == bytes_.end()) return token;
      bytes += found->second;
    }
    return bytes;
  }

  std::unordered_map<char32_t, char> bytes_;
};

// Leaves spaces at the ends of tokens out of their offsets; not the space that the pre-tokenizer put first.
void trim_offsets(Encoding& encoding, bool add_prefix_space) {
  const auto is_kept = [](char32_t c) { return c != alphabet()[' '] && !unicode::is_space(c); };
  for (size_t i = 0; i < encoding.size(); ++i) {
    const std::u32string token = unicode::decode(encoding.tokens[i]);
    auto leading = static_cast<size_t>(std::find_if(token.begin(), token.end(), is_kept) - token.begin());
    const auto trailing = static_cast<size_t>(std::find_if(token.rbegin(), token.rend(), is_kept) - token.rbegin());
    auto& [begin, end] = encoding.offsets[i];
    if (leading == 1 && add_prefix_space && (i == 0 || begin == 0)) leading = 0;
    begin = std::min(begin + leading, end);
    if (end >= trailing) end = std::max(end - trailing, begin);
  }
}

void trim_offsets(std::vector<Windows>& sequences, bool add_prefix_space) {
  for (Windows& each : sequences) {
    trim_offsets(each.main, add_prefix_space);
    for (Encoding& window : each.overflowing) trim_offsets(window, add_prefix_space);
  }
}

class ByteLevelProcessing : public PostProcessor {
 public:
  explicit ByteLevelProcessing(const Fields& fields)
      : prefix_(fields.boolean("add_prefix_space")), trim_(fields.boolean("trim_offsets")) {}

  size_t added(bool) const override { return 0; }

  std::vector<Windows> process(std::vector<Windows> sequences, bool) const override {
    if (trim_) trim_offsets(sequences, prefix_);
    for (size_t i = 0; i < sequences.size(); ++i) set_sequence(sequences[i].main, i);
    return sequences;
  }

 private:
  bool prefix_, trim_;
};

// <s> A </s>, or <s> A </s></s> B </s>, all of type 0.
class RobertaProcessing : public PostProcessor {
 public:
  explicit RobertaProcessing(const Fields& fields)
      : first_(token_of(fields, "cls")),
        last_(token_of(fields, "sep")),
        prefix_(fields.boolean("add_prefix_space")),
        trim_(fields.boolean("trim_offsets")) {}

  size_t added(bool pair) const override { return pair ? 4 : 2; }

  std::vector<Windows> process(std::vector<Windows> sequences, bool add_special_tokens) const override {
    if (trim_) trim_offsets(sequences, prefix_);
    for (size_t i = 0; i < sequences.size(); ++i) {
      Encoding& main = sequences[i].main;
      main.type_ids.assign(main.size(), 0);
      if (!add_special_tokens) continue;
      main = surrounded(main, i);
      for (Encoding& window : sequences[i].overflowing) window = surrounded(window, i);
    }
    return sequences;
  }

 private:
  Encoding surrounded(const Encoding& encoding, size_t sequence) const {
    const SpecialToken& first = sequence == 0 ? first_ : last_;
    Encoding result;
    result.push(first.id, first.value, 0, {0, 0}, {}, true);
    append(result, encoding);
    result.type_ids.assign(result.size(), 0);
    result.sequence_ranges = {{std::min<size_t>(sequence, 1), {1, result.size()}}};
    result.push(last_.id, last_.value, 0, {0, 0}, {}, true);
    return result;
  }

  SpecialToken first_, last_;
  bool prefix_, trim_;
};

}  // namespace

void to_byte_characters(Text& text) {
  Text result;
  result.reserve(text.size() + text.size() / 4);
  std::string bytes;
  for (const Character& each : text) {
    bytes.clear();
    unicode::append(bytes, each.value);
    for (const char byte : bytes) result.push_back({alphabet()[static_cast<unsigned char>(byte)], each.origin});
  }
  text = std::move(result);
}

std::unique_ptr<const PreTokenizer> byte_level_pre_tokenizer(const Fields& fields) {
  return std::make_unique<ByteLevel>(fields);
}

std::unique_ptr<const Decoder> byte_level_decoder(const Fields&) { return std::make_unique<ByteLevelDecoder>(); }

std::unique_ptr<const PostProcessor> byte_level_post_processor(const Fields& fields) {
  return std::make_unique<ByteLevelProcessing>(fields);
}

std::unique_ptr<const PostProcessor> roberta_processing(const Fields& fields) {
  return std::make_unique<RobertaProcessing>(fields);
}

}  // namespace cpuc
