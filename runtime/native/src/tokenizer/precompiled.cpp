// The normalizer Precompiled: SentencePiece's table of replacements.
#include <optional>

#include "error.h"
#include "tokenizer/graphemes.h"
#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

int value_of(char digit) {
  if (digit >= 'A' && digit <= 'Z') return digit - 'A';
  if (digit >= 'a' && digit <= 'z') return digit - 'a' + 26;
  if (digit >= '0' && digit <= '9') return digit - '0' + 52;
  return digit == '+' ? 62 : digit == '/' ? 63 : -1;
}

// The bytes that base64 stands for, with its padding; nothing if it is none.
std::optional<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  for (int i = 0; i < 2 && !text.empty() && text.back() == '='; ++i) text.remove_suffix(1);
  std::string bytes;
  bytes.reserve(text.size() * 3 / 4);
  uint32_t bits = 0;
  int count = 0;
  for (const char digit : text) {
    const int value = value_of(digit);
    if (value < 0) return std::nullopt;
    bits = (bits << 6 | static_cast<uint32_t>(value)) & 0xffff;
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return count >= 6 ? std::nullopt : std::optional(bytes);
}

// Replacements by what they are for, in SentencePiece's form: the size of a trie in bytes, the trie, which is a double
// array of 32-bit units, and the replacements, each with a zero after it. All numbers are little-endian.
class Charsmap {
 public:
  explicit Charsmap(const Fields& fields) : where_(fields.where()) {
    const auto bytes = from_base64(fields.string("precompiled_charsmap"));
    if (!bytes || bytes->size() < 4) fail();
    const size_t size = unit_at(*bytes, 0) / 4;
    if (size == 0 || size > bytes->size() / 4 - 1) fail();
    units_.reserve(size);
    for (size_t i = 1; i <= size; ++i) units_.push_back(unit_at(*bytes, 4 * i));
    replacements_ = bytes->substr(4 * (size + 1));
    if (unicode::to_valid(replacements_) != replacements_) fail();
  }

  // For the first part of `text` that has one.
  std::optional<std::u32string> replacement(std::string_view text) const {
    size_t node = offset(unit(0));
    for (const char each : text) {
      const auto byte = static_cast<unsigned char>(each);
      if (byte == 0) break;
      node ^= byte;
      const uint32_t found = unit(node);
      if ((found & (1U << 31 | 0xff)) != byte) break;
      node ^= offset(found);
      if (found >> 8 & 1) return string_at(unit(node) & ~(1U << 31));
    }
    return std::nullopt;
  }

 private:
  static uint32_t unit_at(const std::string& bytes, size_t at) {
    uint32_t unit = 0;
    for (size_t i = 4; i-- > 0;) unit = unit << 8 | static_cast<unsigned char>(bytes[at + i]);
    return unit;
  }

  static size_t offset(uint32_t unit) { return static_cast<size_t>(unit >> 10) << ((unit & 1U << 9) >> 6); }

  uint32_t unit(size_t index) const {
    if (index >= units_.size()) fail();
    return units_[index];
  }

  std::u32string string_at(size_t begin) const {
    // What a replacement begins with is no byte from the middle of a character.
    if (begin > replacements_.size() || (begin < replacements_.size() && (replacements_[begin] & 0xc0) == 0x80)) fail();
    return unicode::decode(std::string_view(replacements_).substr(begin, replacements_.find('\0', begin) - begin));
  }

  [[noreturn]] void fail() const { throw Error(Kind::bundle, where_ + ": field 'precompiled_charsmap' is damaged"); }

  std::string where_;
  std::vector<uint32_t> units_;
  std::string replacements_;
};

class Precompiled : public Normalizer {
 public:
  explicit Precompiled(const Fields& fields) : charsmap_(fields) {}

  void normalize(Text& text) const override {
    std::vector<Change> changes;
    changes.reserve(text.size());
    bool changed = false;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = end_of_grapheme(text, begin);
      // Clusters of six bytes and more are never looked up as a whole.
      const bool whole = end - begin > 1 && replace(text, begin, end, changes);
      changed = changed || whole;
      for (size_t i = begin; i < end && !whole; ++i) {
        if (replace(text, i, i + 1, changes))
          changed = true;
        else
          changes.push_back({text[i].value, 0});
      }
      begin = end;
    }
    if (changed) transform(text, changes);
  }

 private:
  bool replace(const Text& text, size_t begin, size_t end, std::vector<Change>& changes) const {
    std::string bytes;
    for (size_t i = begin; i < end && bytes.size() < 6; ++i) unicode::append(bytes, text[i].value);
    if (bytes.size() > 5) return false;
    const auto replacement = charsmap_.replacement(bytes);
    if (!replacement) return false;
    const size_t before = end - begin, after = replacement->size();
    for (size_t i = 0; i < after; ++i) changes.push_back({(*replacement)[i], i < before ? 0 : 1});
    // What is removed at the very beginning shifts the origins of the rest in the library, too.
    if (after < before && !changes.empty()) changes.back().change -= static_cast<std::ptrdiff_t>(before - after);
    return true;
  }

  Charsmap charsmap_;
};

}  // namespace

std::unique_ptr<const Normalizer> precompiled_normalizer(const Fields& fields) {
  return std::make_unique<Precompiled>(fields);
}

}  // namespace cpuc
