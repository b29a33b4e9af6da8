#include "heap.h"

#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace cpuc {

void keep_freed_memory() {
#ifdef __GLIBC__
  for (const char* name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_"}) {
    if (std::getenv(name) != nullptr) return;
  }
  const char* tunables = std::getenv("GLIBC_TUNABLES");
  if (tunables != nullptr && std::string(tunables).find("glibc.malloc") != std::string::npos) return;
  constexpr size_t kept = 256 << 20, freed = 2 * kept, largest = 32 << 20, page = 4 << 10;
  ::mallopt(M_MMAP_THRESHOLD, largest);
  ::mallopt(M_TRIM_THRESHOLD, freed);
  ::mallopt(M_TOP_PAD, largest);
  ::mallopt(M_MXFAST, 0);
  static std::atomic_flag grown = ATOMIC_FLAG_INIT;
  if (::getpid() != ::syscall(SYS_gettid) || grown.test_and_set()) return;
  // Limits on memory count room that is never used.
  for (const auto limited : {RLIMIT_AS, RLIMIT_DATA}) {
    rlimit limit{};
    if (::getrlimit(limited, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) return;
  }
  ::mallopt(M_TOP_PAD, kept);
  char* begin = static_cast<char*>(::sbrk(0));
  std::vector<void*> blocks;
  for (size_t taken = 0; taken < kept; taken += largest) blocks.push_back(std::malloc(largest - page));
  char* end = static_cast<char*>(::sbrk(0));
  begin += (page - reinterpret_cast<uintptr_t>(begin) % page) % page;
  if (begin < end) ::madvise(begin, end - begin, MADV_HUGEPAGE);
  for (void* block : blocks) std::free(block);
  ::mallopt(M_TOP_PAD, largest);
#endif
}

}  // namespace cpuc
