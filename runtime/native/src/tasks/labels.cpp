#include "tasks/labels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "error.h"

namespace cpuc {

std::vector<std::string> read_labels(const Manifest& manifest) {
  std::vector<std::string> labels;
  const auto found = manifest.preprocessing.find("labels");
  const bool listed = found != manifest.preprocessing.end() && found->is_array() && !found->empty();
  if (!listed || !std::all_of(found->begin(), found->end(), [](const auto& label) { return label.is_string(); }))
    throw Error(Kind::bundle, "manifest.json.preprocessing: labels is missing or wrong");
  found->get_to(labels);
  const auto& outputs = manifest.outputs;
  const auto logits = std::find_if(outputs.begin(), outputs.end(), [](const TensorSpec& spec) { return spec.name == "logits"; });
  const auto* size = logits == outputs.end() || logits->shape.empty() ? nullptr : std::get_if<int64_t>(&logits->shape.back());
  if (logits == outputs.end() || (size && *size != static_cast<int64_t>(labels.size())))
    throw Error(Kind::bundle, "manifest.json: the outputs are not the scores of the labels in 'preprocessing'");
  return labels;
}

std::vector<float> softmax(std::vector<float> logits) {
  if (logits.empty()) return logits;
  const float most = *std::max_element(logits.begin(), logits.end());
  double total = 0;  // of a vocabulary's many small ones, floats would lose the third digit
  for (float& value : logits) total += value = std::exp(value - most);
  for (float& value : logits) value = static_cast<float>(value / total);
  return logits;
}

std::vector<float> sigmoid(std::vector<float> logits) {
  for (float& value : logits) {
    // exp of the negative magnitude only, which cannot overflow
    const float small = std::exp(-std::abs(value));
    value = value >= 0 ? 1 / (1 + small) : small / (1 + small);
  }
  return logits;
}

std::vector<size_t> largest(const std::vector<float>& scores, size_t count) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const size_t kept = std::min(count, order.size());
  // What is no number comes last.
  const auto value = [&](size_t i) { return std::isnan(scores[i]) ? -std::numeric_limits<float>::infinity() : scores[i]; };
  const auto before = [&](size_t a, size_t b) { return value(a) != value(b) ? value(a) > value(b) : a < b; };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), before);
  order.resize(kept);
  return order;
}

}  // namespace cpuc
