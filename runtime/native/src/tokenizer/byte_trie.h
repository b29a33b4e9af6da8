// Strings by their first bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace cpuc {

class ByteTrie {
 public:
  // Of several entries with the same string, the last one counts.
  explicit ByteTrie(std::vector<std::pair<std::string_view, uint32_t>> entries);

  std::optional<uint32_t> find(std::string_view text) const;

  // Calls `visit` with the size and the number of each entry that `text` begins with, the shortest first.
  template <typename Visit>
  void for_each_prefix(std::string_view text, Visit visit) const {
    uint32_t node = 0;
    for (size_t size = 1; size <= text.size(); ++size) {
      node = child(node, static_cast<unsigned char>(text[size - 1]));
      if (node == 0) return;
      if (nodes_[node].entry != none) visit(size, nodes_[node].entry);
    }
  }

 private:
  static constexpr uint32_t none = UINT32_MAX;

  // The children of a node are next to each other, in the order of their bytes.
  struct Node {
    uint32_t entry = none;
    uint32_t children = 0;
    uint16_t count = 0;
    unsigned char byte = 0;
  };

  uint32_t child(uint32_t node, unsigned char byte) const;  // 0 if there is none

  std::vector<Node> nodes_;
};

}  // namespace cpuc
