// Where weights lie while an artifact is loaded.
//
// torch reads each weight into a new block, and IPEX makes a blocked copy of most of them; the originals are freed only when all of them
// have been read. Here a block that is filled from a page of the file is that page of the file: nothing is copied, and what was used is
// given back to the system at once. Blocks that stay are in huge pages where the system has them to give.
#pragma once

#include <cstddef>
#include <cstdint>

#include "archive.h"

namespace cpuc {

// While it lives, torch's larger blocks on every thread come from here. One at a time, others wait.
class WeightMemory {
 public:
  explicit WeightMemory(const File& file) : file_(file) { begin(); }
  ~WeightMemory() { end(); }
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  // Fills the block at `buffer` from `offset` of the file; false if it is none of ours, or lies otherwise in its page than the file does.
  bool fill(char* buffer, uint64_t offset, size_t size) const;

  // What still is a page of the file becomes memory, so that nothing that is done to the file later is seen. Throws std::bad_alloc.
  void detach() const;

 private:
  static void begin();
  static void end();

  const File& file_;
};

}  // namespace cpuc
