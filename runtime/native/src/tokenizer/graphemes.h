// What a reader takes for one character.
#pragma once

#include <cstddef>

#include "tokenizer/text.h"

namespace cpuc {

// Where the extended grapheme cluster ends that begins there (UAX 29, Unicode 17).
size_t end_of_grapheme(const Text& text, size_t begin);

}  // namespace cpuc
