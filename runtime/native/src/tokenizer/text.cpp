#include "tokenizer/text.h"

#include <algorithm>

#include "tokenizer/unicode.h"

namespace cpuc {

void transform(Text& text, const std::vector<Change>& changes) {
  Text result;
  result.reserve(changes.size());
  size_t next = 0;
  for (const Change& each : changes) {
    const bool further = each.change > 0;
    result.push_back({each.value, text[further && next > 0 ? next - 1 : next].origin});
    if (!further) next = std::min(next + 1 + static_cast<size_t>(-each.change), text.size());
  }
  text = std::move(result);
}

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
