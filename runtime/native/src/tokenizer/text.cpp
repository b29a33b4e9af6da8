#include "tokenizer/text.h"

#include "tokenizer/unicode.h"

namespace cpuc {

std::string to_utf8(const Text& text) {
  std::string utf8;
  utf8.reserve(text.size());
  for (const Character& each : text) unicode::append(utf8, each.value);
  return utf8;
}

Text to_text(std::string_view utf8) {
  const std::u32string characters = unicode::decode(utf8);
  Text text;
  text.reserve(characters.size());
  for (size_t i = 0; i < characters.size(); ++i) text.push_back({characters[i], i});
  return text;
}

}  // namespace cpuc
