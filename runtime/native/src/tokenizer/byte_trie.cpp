#include "tokenizer/byte_trie.h"

#include <algorithm>
#include <queue>

namespace cpuc {

namespace {

// The entries below a node; they share their first `depth` bytes.
struct Below {
  uint32_t node;
  size_t begin, end, depth;
};

}  // namespace

ByteTrie::ByteTrie(std::vector<std::pair<std::string_view, uint32_t>> entries) {
  std::stable_sort(entries.begin(), entries.end(), [](const auto& one, const auto& other) { return one.first < other.first; });
  nodes_.emplace_back();
  std::queue<Below> open;
  open.push({0, 0, entries.size(), 0});
  for (; !open.empty(); open.pop()) {
    auto [node, begin, end, depth] = open.front();
    for (; begin < end && entries[begin].first.size() == depth; ++begin) nodes_[node].entry = entries[begin].second;
    nodes_[node].children = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const char byte = entries[begin].first[depth];
      size_t next = begin + 1;
      while (next < end && entries[next].first[depth] == byte) ++next;
      open.push({static_cast<uint32_t>(nodes_.size()), begin, next, depth + 1});
      nodes_.emplace_back().byte = static_cast<unsigned char>(byte);
      ++nodes_[node].count;
      begin = next;
    }
  }
}

uint32_t ByteTrie::child(uint32_t node, unsigned char byte) const {
  const auto begin = nodes_.begin() + nodes_[node].children, end = begin + nodes_[node].count;
  const auto found =
      std::lower_bound(begin, end, byte, [](const Node& each, unsigned char wanted) { return each.byte < wanted; });
  return found == end || found->byte != byte ? 0 : static_cast<uint32_t>(found - nodes_.begin());
}

std::optional<uint32_t> ByteTrie::find(std::string_view text) const {
  uint32_t node = 0;
  for (const char byte : text) {
    node = child(node, static_cast<unsigned char>(byte));
    if (node == 0) return std::nullopt;
  }
  return nodes_[node].entry == none ? std::nullopt : std::optional(nodes_[node].entry);
}

}  // namespace cpuc
