// Tables of ranges of characters, in rising order.
#pragma once

#include <algorithm>
#include <iterator>

namespace cpuc::unicode {

// The entry whose range, from `first` to `last`, has the character; null if none has.
template <typename Entry, size_t count>
const Entry* find(const Entry (&table)[count], char32_t character) {
  const auto after = std::upper_bound(std::begin(table), std::end(table), character,
                                      [](char32_t value, const Entry& entry) { return value < entry.first; });
  if (after == std::begin(table) || character > std::prev(after)->last) return nullptr;
  return std::prev(after);
}

}  // namespace cpuc::unicode
