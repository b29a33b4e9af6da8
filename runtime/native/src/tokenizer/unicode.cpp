#include "tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>

#include "error.h"
#include "tokenizer/ranges.h"
#include "tokenizer/unicode_tables.h"

namespace cpuc::unicode {

namespace {

utf8proc_category_t category(char32_t character) { return utf8proc_category(static_cast<utf8proc_int32_t>(character)); }

bool is_ascii_punctuation(char32_t c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

Expansion just(char32_t character) { return {{character}, 1}; }

// A character of UTF-8, or as much of one as there is.
struct Sequence {
  size_t size;
  bool whole;
};

Sequence sequence_at(std::string_view bytes, size_t at) {
  const auto byte = [&](size_t i) { return at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0; };
  const unsigned char first = byte(0);
  if (first < 0x80) return {1, true};
  if (first < 0xc2 || first > 0xf4) return {1, false};
  const size_t wanted = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  // What would be too long, a surrogate or beyond the last code point shows in the second byte.
  const int lowest = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const int highest = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  if (byte(1) < lowest || byte(1) > highest) return {1, false};
  for (size_t size = 2; size < wanted; ++size)
    if ((byte(size) & 0xc0) != 0x80) return {size, false};
  return {wanted, true};
}

// Puts the characters into `text` if it is given; returns where the first byte is that is none.
std::optional<size_t> read(std::string_view utf8, std::u32string* text) {
  if (text != nullptr) text->reserve(utf8.size());
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(utf8.data());
  for (size_t at = 0; at < utf8.size();) {
    utf8proc_int32_t character = 0;
    const utf8proc_ssize_t size = utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(utf8.size() - at), &character);
    if (size <= 0) return at;
    if (text != nullptr) *text += static_cast<char32_t>(character);
    at += static_cast<size_t>(size);
  }
  return std::nullopt;
}

}  // namespace

std::u32string decode(std::string_view utf8) {
  std::u32string text;
  if (const auto wrong = read(utf8, &text)) throw Error(Kind::input, "the text is not UTF-8: wrong byte at offset " + std::to_string(*wrong));
  return text;
}

std::optional<size_t> find_invalid(std::string_view utf8) { return read(utf8, nullptr); }

void append(std::string& utf8, char32_t character) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), bytes);
  utf8.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

std::string to_valid(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const Sequence sequence = sequence_at(bytes, at);
    if (sequence.whole)
      text += bytes.substr(at, sequence.size);
    else
      append(text, 0xfffd);
    at += sequence.size;
  }
  return text;
}

bool is_space(char32_t character) {
  if (character < 0x80) return character == ' ' || (character >= '\t' && character <= '\r');
  if (character == 0x85) return true;
  const utf8proc_category_t kind = category(character);
  return kind == UTF8PROC_CATEGORY_ZS || kind == UTF8PROC_CATEGORY_ZL || kind == UTF8PROC_CATEGORY_ZP;
}

bool is_removed(char32_t character) {
  if (character == '\t' || character == '\n' || character == '\r') return false;
  if (character == 0xfffd) return true;
  const utf8proc_category_t kind = category(character);
  const bool control = kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF || kind == UTF8PROC_CATEGORY_CO;
  return control && !find(kFormatKept, character);
}

bool is_ideograph(char32_t character) {
  // The library's ranges, which leave out U+2B820 to U+2B91F and everything after Unicode 8.
  static constexpr Range ranges[] = {{0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xf900, 0xfaff},  {0x20000, 0x2a6df},
                                     {0x2a700, 0x2b81f}, {0x2b920, 0x2ceaf}, {0x2f800, 0x2fa1f}};
  return find(ranges, character);
}

bool is_accent(char32_t character) {
  if (character < 0x300) return false;
  if (find(kMarksAdded, character)) return true;
  return category(character) == UTF8PROC_CATEGORY_MN && !find(kMarksKept, character);
}

bool is_punctuation(char32_t character) {
  if (character < 0x80) return is_ascii_punctuation(character);
  if (find(kPunctuationAdded, character)) return true;
  const utf8proc_category_t kind = category(character);
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO && !find(kPunctuationMissing, character);
}

bool is_word(char32_t character) {
  // Alphabetic beyond letters and marks, and Join_Control.
  static constexpr Range others[] = {
      {0x200c, 0x200d}, {0x24b6, 0x24e9}, {0x1f130, 0x1f149}, {0x1f150, 0x1f169}, {0x1f170, 0x1f189}};
  if (find(kWordAdded, character) || find(others, character)) return true;
  const utf8proc_category_t kind = category(character);
  const bool word = (kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_NL) || kind == UTF8PROC_CATEGORY_PC;
  return word && !find(kWordMissing, character);
}

bool is_letter(char32_t character) {
  if (character < 0x80) return (character | 0x20) >= 'a' && (character | 0x20) <= 'z';
  if (find(kLettersAdded, character)) return true;
  const utf8proc_category_t kind = category(character);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO && !find(kLettersMissing, character);
}

bool is_number(char32_t character) {
  if (character < 0x80) return character >= '0' && character <= '9';
  if (find(kNumbersAdded, character)) return true;
  const utf8proc_category_t kind = category(character);
  return kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO && !find(kNumbersMissing, character);
}

bool is_mark(char32_t character) {
  if (character < 0x300) return false;
  if (character == 0x1cf2 || character == 0x1cf3) return true;  // letters since
  const utf8proc_category_t kind = category(character);
  return kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME && !find(kMarksYounger, character);
}

int combining_class(char32_t character) {
  if (character < 0x300) return 0;
  const int value = utf8proc_get_property(static_cast<utf8proc_int32_t>(character))->combining_class;
  return value == 0 || find(kClassZero, character) ? 0 : value;
}

Expansion decompose(char32_t character) {
  if (character < 0xc0 || find(kComposed, character)) return just(character);
  utf8proc_int32_t parts[4];
  int boundary = 0;
  const utf8proc_ssize_t size =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(character), parts, 4, UTF8PROC_DECOMPOSE, &boundary);
  // No canonical decomposition has more than four characters.
  if (size < 1 || size > 4) return just(character);
  Expansion result{{}, static_cast<size_t>(size)};
  std::transform(parts, parts + size, result.characters.begin(), [](utf8proc_int32_t c) { return static_cast<char32_t>(c); });
  return result;
}

std::u32string decompose_compatible(char32_t character) {
  if (character < 0xa0 || find(kComposed, character) || find(kCompatibleYounger, character)) return {character};
  utf8proc_int32_t parts[18];  // no decomposition has more
  int boundary = 0;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  const utf8proc_ssize_t size =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(character), parts, 18, options, &boundary);
  if (size < 1 || size > 18) return {character};
  return {parts, parts + size};
}

std::optional<char32_t> compose(char32_t first, char32_t second) {
  if (second < 0x300) return std::nullopt;
  utf8proc_int32_t pair[3] = {static_cast<utf8proc_int32_t>(first), static_cast<utf8proc_int32_t>(second)};
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  if (utf8proc_normalize_utf32(pair, 2, options) != 1) return std::nullopt;
  const auto composed = static_cast<char32_t>(pair[0]);
  return find(kComposed, composed) ? std::nullopt : std::optional(composed);
}

Expansion lower(char32_t character) {
  if (character < 0x80) return just(character >= 'A' && character <= 'Z' ? character + 32 : character);
  // The one letter whose lower case, without regard to language or context, is two characters.
  if (character == 0x130) return {{'i', 0x307}, 2};
  if (const LowerRange* entry = find(kLower, character))
    return just(static_cast<char32_t>(static_cast<int>(character) + entry->delta));
  return just(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character))));
}

}  // namespace cpuc::unicode
