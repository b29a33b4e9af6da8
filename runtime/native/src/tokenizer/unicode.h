// Unicode as the `tokenizers` library sees it.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace cpuc::unicode {

// The code points of UTF-8. Throws Error (input) at the first byte that is none.
std::u32string decode(std::string_view utf8);
// Where that byte is; nothing if all of it is UTF-8.
std::optional<size_t> find_invalid(std::string_view utf8);

void append(std::string& utf8, char32_t character);

// Bytes as UTF-8: U+FFFD for each part that is none, as Rust's from_utf8_lossy has it.
std::string to_valid(std::string_view bytes);

// White_Space, as Rust's char::is_whitespace and `\s` of its regular expressions.
bool is_space(char32_t character);
// What BertNormalizer's clean_text removes.
bool is_removed(char32_t character);
// What BertNormalizer's handle_chinese_chars sets apart.
bool is_ideograph(char32_t character);
// What BertNormalizer's strip_accents removes, once decomposed.
bool is_accent(char32_t character);
// What BertPreTokenizer makes a word of its own.
bool is_punctuation(char32_t character);
// `\w` of Rust's regular expressions.
bool is_word(char32_t character);
// `\p{L}` and `\p{N}` of ByteLevel's regular expression.
bool is_letter(char32_t character);
bool is_number(char32_t character);
// What StripAccents removes.
bool is_mark(char32_t character);

int combining_class(char32_t character);

struct Expansion {
  std::array<char32_t, 4> characters;
  size_t size;
};

// The full canonical decomposition; the character itself if it has none.
Expansion decompose(char32_t character);

// The full compatible decomposition; the character itself if it has none.
std::u32string decompose_compatible(char32_t character);

// The one character that two are composed to, if there is one.
std::optional<char32_t> compose(char32_t first, char32_t second);

Expansion lower(char32_t character);

}  // namespace cpuc::unicode
