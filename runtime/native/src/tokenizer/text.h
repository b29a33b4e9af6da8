// Text on its way to tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cpuc {

// A character, and which one of the original text it comes from.
struct Character {
  char32_t value;
  size_t origin;
};

using Text = std::vector<Character>;

// A token of a piece of text: characters `begin` to `end` of that piece.
struct Token {
  int64_t id;
  std::string value;
  size_t begin, end;
};

// A character of a changed text. `change` is 0 if it stands for the next character of the text before, -n if it stands for
// that and the n after it, and 1 if it is a further one for the character before.
struct Change {
  char32_t value;
  std::ptrdiff_t change;
};

// The text becomes the characters of `changes`, with the origins that the `tokenizers` library gives them.
void transform(Text& text, const std::vector<Change>& changes);

std::string to_utf8(const Text& text);

// The characters of UTF-8, each its own origin. Throws Error (input) if it is none.
Text to_text(std::string_view utf8);

}  // namespace cpuc
