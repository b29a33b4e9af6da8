// Cutting sequences into windows.
#include <algorithm>

#include "error.h"
#include "tokenizer/encoding.h"

namespace cpuc {

namespace {

using Span = std::pair<size_t, size_t>;

Encoding slice(const Encoding& encoding, Span span) {
  const auto cut = [&](const auto& values) {
    using Values = std::decay_t<decltype(values)>;
    return Values(values.begin() + static_cast<std::ptrdiff_t>(span.first),
                  values.begin() + static_cast<std::ptrdiff_t>(span.second));
  };
  Encoding result;
  result.ids = cut(encoding.ids);
  result.type_ids = cut(encoding.type_ids);
  result.tokens = cut(encoding.tokens);
  result.offsets = cut(encoding.offsets);
  result.special_tokens_mask = cut(encoding.special_tokens_mask);
  result.word_ids = cut(encoding.word_ids);
  return result;
}

// Where the windows of `size` tokens begin and end: from the beginning on, or with `left` from the end back.
std::vector<Span> spans(size_t size, size_t length, size_t stride, bool left) {
  const size_t step = length - stride;
  std::vector<Span> result;
  for (size_t moved = 0;; moved += step) {
    if (left) {
      const size_t end = size - moved;
      result.emplace_back(end > length ? end - length : 0, end);
      if (result.back().first == 0) return result;
    } else {
      result.emplace_back(moved, std::min(moved + length, size));
      if (result.back().second == size) return result;
    }
  }
}

void cut(Windows& windows, size_t length, const Truncation& limits) {
  const Encoding whole = std::move(windows.main);
  windows.main = {};
  if (length >= whole.size()) {
    windows.main = whole;
    return;
  }
  if (length == 0) {
    windows.overflowing.push_back(whole);
    return;
  }
  if (limits.stride >= length)
    throw Error(Kind::bundle, "`stride` must be strictly less than `max_len=" + std::to_string(length) +
                                  "` (note that `max_len` may be shorter than the max length of the original model, as it "
                                  "subtracts the number of special characters");
  for (const Span& span : spans(whole.size(), length, limits.stride, limits.left))
    windows.overflowing.push_back(slice(whole, span));
  windows.main = std::move(windows.overflowing.front());
  windows.overflowing.erase(windows.overflowing.begin());
}

// How long two sequences may be that are too long together: the shorter one stays whole if it takes at most half.
Span shares(size_t first, size_t second, size_t length) {
  const size_t shorter = std::min(first, second);
  const size_t half = length / 2;
  const Span lengths = shorter <= half ? Span(shorter, length - shorter) : Span(half, length - half);
  return first > second ? Span(lengths.second, lengths.first) : lengths;
}

}  // namespace

void truncate(std::vector<Windows>& sequences, const Truncation& limits) {
  size_t total = 0;
  for (const Windows& each : sequences) total += each.main.size();
  if (limits.length == 0) {
    for (Windows& each : sequences) cut(each, 0, limits);
    return;
  }
  if (total <= limits.length) return;
  if (limits.strategy == Strategy::longest_first) {
    if (sequences.size() == 1) return cut(sequences[0], limits.length, limits);
    const Span lengths = shares(sequences[0].main.size(), sequences[1].main.size(), limits.length);
    cut(sequences[0], lengths.first, limits);
    cut(sequences[1], lengths.second, limits);
    return;
  }
  const size_t index = limits.strategy == Strategy::only_first ? 0 : 1;
  if (index == sequences.size()) throw Error(Kind::bundle, "Truncation error: Second sequence not provided");
  const size_t size = sequences[index].main.size();
  const size_t excess = total - limits.length;
  if (size <= excess)
    throw Error(Kind::bundle, "Truncation error: Sequence to truncate too short to respect the provided max_length");
  cut(sequences[index], size - excess, limits);
}

}  // namespace cpuc
