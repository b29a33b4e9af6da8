// Unicode's normal forms, as the changes that lead to them.
#pragma once

#include <vector>

#include "tokenizer/text.h"

namespace cpuc {

// Canonical (NFD) or compatible (NFKD) decomposition.
std::vector<Change> decompose(const Text& text, bool compatible);

// Canonical composition of what is decomposed (NFC, NFKC).
std::vector<Change> recompose(const std::vector<Change>& decomposed);

}  // namespace cpuc
