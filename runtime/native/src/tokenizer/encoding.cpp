#include "tokenizer/encoding.h"

namespace cpuc {

namespace {

template <typename T>
void extend(std::vector<T>& values, const std::vector<T>& more) {
  values.insert(values.end(), more.begin(), more.end());
}

std::pair<size_t, size_t> range_of(const Encoding& encoding, size_t sequence) {
  const auto found = encoding.sequence_ranges.find(sequence);
  return found == encoding.sequence_ranges.end() ? std::pair<size_t, size_t>(0, encoding.size()) : found->second;
}

}  // namespace

void Encoding::push(int64_t id, std::string token, int64_t type_id, std::pair<size_t, size_t> characters,
                    std::optional<size_t> word_id, bool special) {
  ids.push_back(id);
  type_ids.push_back(type_id);
  tokens.push_back(std::move(token));
  offsets.push_back(characters);
  special_tokens_mask.push_back(special ? 1 : 0);
  word_ids.push_back(word_id);
}

std::optional<std::pair<size_t, size_t>> Encoding::word_to_chars(size_t word, size_t sequence) const {
  const auto [begin, end] = range_of(*this, sequence);
  std::optional<std::pair<size_t, size_t>> found;
  // Words come in order; nothing compares as less than any word.
  for (size_t i = begin; i < end && word_ids[i] <= word; ++i) {
    if (word_ids[i] != word) continue;
    if (!found) found = offsets[i];
    found->second = offsets[i].second;
  }
  return found;
}

void set_sequence(Encoding& encoding, size_t sequence) { encoding.sequence_ranges[sequence] = {0, encoding.size()}; }

void list_sequences(Encoding& encoding) {
  encoding.sequence_ids.assign(encoding.size(), std::nullopt);
  const size_t count = encoding.sequence_ranges.empty() ? 1 : encoding.sequence_ranges.size();
  for (size_t sequence = 0; sequence < count; ++sequence) {
    const auto [begin, end] = range_of(encoding, sequence);
    for (size_t i = begin; i < end; ++i) encoding.sequence_ids[i] = sequence;
  }
}

void append(Encoding& encoding, const Encoding& other) {
  const size_t size = encoding.size();
  for (const auto& [sequence, range] : other.sequence_ranges)
    encoding.sequence_ranges[sequence] = {size + range.first, size + range.second};
  extend(encoding.ids, other.ids);
  extend(encoding.type_ids, other.type_ids);
  extend(encoding.tokens, other.tokens);
  extend(encoding.offsets, other.offsets);
  extend(encoding.special_tokens_mask, other.special_tokens_mask);
  extend(encoding.word_ids, other.word_ids);
}

void append(Windows& windows, const Windows& other) {
  std::vector<Encoding> overflowing;
  overflowing.reserve((windows.overflowing.size() + 1) * (other.overflowing.size() + 1) - 1);
  for (const Encoding& each : windows.overflowing) {
    append(overflowing.emplace_back(each), other.main);
    for (const Encoding& more : other.overflowing) append(overflowing.emplace_back(each), more);
  }
  for (const Encoding& more : other.overflowing) append(overflowing.emplace_back(windows.main), more);
  append(windows.main, other.main);
  windows.overflowing = std::move(overflowing);
}

}  // namespace cpuc
