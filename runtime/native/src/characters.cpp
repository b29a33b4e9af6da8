#include "characters.h"

#include <utf8proc.h>

#include <algorithm>

#include "tokenizer/unicode.h"

namespace cpuc {
namespace {

// str.isspace: spaces, and the controls that separate lines or records.
bool is_python_space(char32_t character) { return unicode::is_space(character) || (character >= 0x1c && character <= 0x1f); }

utf8proc_category_t category(char32_t character) { return utf8proc_category(static_cast<utf8proc_int32_t>(character)); }

// Unicode's Cased and Case_Ignorable (chapter 3.13), which decide whether a sigma ends a word.
bool is_cased(char32_t character) {
  const auto value = static_cast<utf8proc_int32_t>(character);
  return utf8proc_islower(value) || utf8proc_isupper(value) || category(character) == UTF8PROC_CATEGORY_LT;
}

bool is_case_ignorable(char32_t character) {
  // Word_Break MidLetter, MidNumLet and Single_Quote.
  constexpr char32_t within_words[] = {'\'', '.', ':', 0xb7, 0x387, 0x55f, 0x5f4, 0x2018, 0x2019, 0x2024, 0x2027, 0xfe13, 0xfe52, 0xfe55, 0xff07, 0xff0e, 0xff1a};
  if (std::find(std::begin(within_words), std::end(within_words), character) != std::end(within_words)) return true;
  const utf8proc_category_t kind = category(character);
  return kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_ME || kind == UTF8PROC_CATEGORY_CF || kind == UTF8PROC_CATEGORY_LM ||
         kind == UTF8PROC_CATEGORY_SK;
}

bool ends_word(const std::u32string& text, size_t at) {
  size_t before = at, after = at + 1;
  while (before > 0 && is_case_ignorable(text[before - 1])) --before;
  while (after < text.size() && is_case_ignorable(text[after])) ++after;
  return before > 0 && is_cased(text[before - 1]) && !(after < text.size() && is_cased(text[after]));
}

}  // namespace

bool is_blank(std::string_view text) {
  const std::u32string characters = unicode::decode(text);
  return std::all_of(characters.begin(), characters.end(), is_python_space);
}

std::string strip(std::string_view text) {
  const std::u32string characters = unicode::decode(text);
  size_t begin = 0, end = characters.size();
  while (begin < end && is_python_space(characters[begin])) ++begin;
  while (end > begin && is_python_space(characters[end - 1])) --end;
  return slice(characters, begin, end);
}

std::string lower(std::string_view text) {
  constexpr char32_t capital_sigma = 0x3a3, final_sigma = 0x3c2;
  const std::u32string characters = unicode::decode(text);
  std::string result;
  for (size_t i = 0; i < characters.size(); ++i) {
    if (characters[i] == capital_sigma && ends_word(characters, i)) {
      unicode::append(result, final_sigma);
      continue;
    }
    const unicode::Expansion small = unicode::lower(characters[i]);
    for (size_t j = 0; j < small.size; ++j) unicode::append(result, small.characters[j]);
  }
  return result;
}

std::string slice(const std::u32string& text, size_t begin, size_t end) {
  std::string utf8;
  for (size_t i = begin; i < std::min(end, text.size()); ++i) unicode::append(utf8, text[i]);
  return utf8;
}

size_t length(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }));
}

std::vector<std::string> split_at_commas(std::string_view text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace cpuc
