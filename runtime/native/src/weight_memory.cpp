#include "weight_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace cpuc {
namespace {

constexpr size_t smallest = 256 << 10, largest = size_t{1} << 46, huge_page = 2 << 20;
// How much of what was read last stays: most weights are used right after they were read, if they are packed at all.
constexpr size_t kept = 16 << 20;

size_t rounded(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

void* map_memory(size_t size) {
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

// A block of its own pages, which may be pages of the file.
struct Block {
  size_t size;
  bool mapped = false;
};

class Blocks final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    if (size < smallest || size > largest || !loading_) {
      void* memory = usual_->raw_allocate(size);
      return {memory, memory, &Blocks::release, c10::Device(c10::kCPU)};
    }
    const size_t whole = rounded(size, page());
    char* memory = static_cast<char*>(whole < huge_page ? map_memory(whole) : aligned(whole));
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_[memory] = {whole};
    return {memory, memory, &Blocks::release, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &Blocks::release; }

  void copy_data(void* target, const void* source, size_t count) const override { std::memcpy(target, source, count); }

  bool fill(char* buffer, int file, uint64_t offset, size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto block = blocks_.find(buffer);
    if (block == blocks_.end() || offset % page() != 0 || rounded(size, page()) != block->second.size) return false;
    // Writable only afterwards: the pages of a private mapping that may be written are copied when they are populated.
    void* pages = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, static_cast<off_t>(offset));
    if (pages == MAP_FAILED) return false;
    if (::mprotect(pages, size, PROT_READ | PROT_WRITE) != 0 || ::mremap(pages, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, buffer) == MAP_FAILED) {
      ::munmap(pages, size);
      return false;
    }
    block->second.mapped = true;
    recent_.emplace_back(buffer, block->second.size), recent_size_ += block->second.size;
    while (recent_size_ > kept && recent_.size() > 1) drop_oldest();
    return true;
  }

  // The blocks are those of a model that nobody has yet, so that they stay while they are copied.
  void detach() {
    for (const auto& [memory, size] : take_mapped()) {
      auto* copy = static_cast<char*>(map_memory(size));
      ::madvise(copy, size, MADV_HUGEPAGE);
      for (size_t done = 0; done < size; done += kept) {
        const size_t part = std::min(kept, size - done);
        std::memcpy(copy + done, memory + done, part);
        ::madvise(memory + done, part, MADV_DONTNEED);
      }
      if (::mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, memory) == MAP_FAILED) {
        ::munmap(copy, size);
        throw std::bad_alloc();
      }
    }
  }

  void set_loading(bool loading) { loading_ = loading; }

  // IPEX frees its blocks through whatever is torch's allocator by then: once this one is it, it stays so for as long as the process lives.
  static Blocks& instance() {
    static auto* blocks = [] {
      auto* made = new Blocks;
      c10::SetCPUAllocator(made);
      return made;
    }();
    return *blocks;
  }

 private:
  static size_t page() {
    static const auto size = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    return size;
  }

  // At the beginning of a huge page, and of those as far as the system has them.
  static void* aligned(size_t size) {
    char* memory = static_cast<char*>(map_memory(size + huge_page));
    const size_t before = rounded(reinterpret_cast<uintptr_t>(memory), huge_page) - reinterpret_cast<uintptr_t>(memory);
    if (before > 0) ::munmap(memory, before);
    if (before < huge_page) ::munmap(memory + before + size, huge_page - before);
    ::madvise(memory + before, size, MADV_HUGEPAGE);
    return memory + before;
  }

  std::vector<std::pair<char*, size_t>> take_mapped() {
    const std::lock_guard<std::mutex> lock(mutex_);
    recent_.clear(), recent_size_ = 0;
    std::vector<std::pair<char*, size_t>> found;
    for (auto& [memory, block] : blocks_) {
      if (block.mapped) found.emplace_back(memory, block.size);
      block.mapped = false;
    }
    return found;
  }

  // The pages are those of the file still: whoever reads them gets them again.
  void drop_oldest() {
    const auto [memory, size] = recent_.front();
    recent_.pop_front(), recent_size_ -= size;
    const auto block = blocks_.find(memory);
    if (block != blocks_.end() && block->second.mapped) ::madvise(memory, block->second.size, MADV_DONTNEED);
  }

  static void release(void* memory) {
    Blocks& all = instance();
    if (reinterpret_cast<uintptr_t>(memory) % page() == 0 && all.unmap(static_cast<char*>(memory))) return;
    all.usual_->raw_deallocate(memory);
  }

  bool unmap(char* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto block = blocks_.find(memory);
    if (block == blocks_.end()) return false;
    ::munmap(memory, block->second.size);
    blocks_.erase(block);
    return true;
  }

  c10::Allocator* const usual_ = c10::GetCPUAllocator();
  std::atomic<bool> loading_ = false;
  std::mutex mutex_;
  std::map<char*, Block> blocks_;
  std::deque<std::pair<char*, size_t>> recent_;  // filled from the file, the latest last
  size_t recent_size_ = 0;
};

std::mutex loading;

}  // namespace

bool WeightMemory::fill(char* buffer, uint64_t offset, size_t size) const {
  return size >= smallest && offset + size <= file_.size() && Blocks::instance().fill(buffer, file_.handle(), offset, size);
}

void WeightMemory::detach() const { Blocks::instance().detach(); }

void WeightMemory::begin() {
  loading.lock();
  Blocks::instance().set_loading(true);
}

void WeightMemory::end() {
  Blocks::instance().set_loading(false);
  loading.unlock();
}

}  // namespace cpuc
