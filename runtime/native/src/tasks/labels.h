// Scores of labels, as runtime/labels.py.
#pragma once

#include <string>
#include <vector>

#include "manifest.h"

namespace cpuc {

// The label of each score, in order. Throws Error (bundle) if the manifest does not have them.
std::vector<std::string> read_labels(const Manifest& manifest);

std::vector<float> softmax(std::vector<float> logits);
std::vector<float> sigmoid(std::vector<float> logits);

// The positions of the `count` largest, largest first; of equal ones the first one first.
std::vector<size_t> largest(const std::vector<float>& scores, size_t count);

}  // namespace cpuc
