// The archive: a zip file in one layout only, as runtime/archive.py reads it and docs/format.md describes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cpuc {

// A regular file, open for reading. Reads name their place, so that threads may share it.
class File {
 public:
  explicit File(std::string path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // `size` bytes from `offset`, or what there is of them.
  std::string read(uint64_t offset, uint64_t size) const;
  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  int handle() const { return handle_; }
  // The same into a buffer; returns how many bytes there were.
  size_t read_into(char* buffer, uint64_t offset, size_t size) const;

 private:
  std::string path_;
  int handle_ = -1;
  uint64_t size_ = 0;
};

struct Member {
  std::string name;  // below the top folder
  uint64_t offset;
  uint64_t size;
};

// Where each member's bytes lie, in their order. Throws Error for any other layout, and without the member `needed`.
std::vector<Member> list_members(const File& file, const std::string& needed);

}  // namespace cpuc
