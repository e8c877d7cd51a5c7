// Memory of large tensors and of the graphs' blocks on a CPU.
//
// OneFlow 0.9.0 clears every block of host memory with memset. In a new block, that maps one page after the other in a
// single thread: a second for the 1.7 GB of yolov5n's step at 640 px and batch 16. Pages from the system are clear
// already, so large blocks come directly from it, and are mapped by several threads at once.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <vector>

#include "native/common.h"
#include "native/import_slot.h"
#include "oneflow/core/common/maybe.h"
#include "oneflow/core/ep/include/allocation_options.h"

// Since Linux 5.14; older ones refuse it, and pages are mapped at their first use.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace oneflow {
namespace ep {

// OneFlow's wheel contains no header for it.
class CpuDevice {
 public:
  Maybe<void> Alloc(const AllocationOptions& options, void** block, size_t size);
  void Free(const AllocationOptions& options, void* block);
};

}  // namespace ep
}  // namespace oneflow

namespace graph_train {

namespace {

using oneflow::Maybe;
using oneflow::ep::AllocationOptions;
using oneflow::ep::CpuDevice;

constexpr char kLibrary[] = "liboneflow-";
constexpr char kAlloc[] = "_ZN7oneflow2ep9CpuDevice5AllocERKNS0_17AllocationOptionsEPPvm";
constexpr char kFree[] = "_ZN7oneflow2ep9CpuDevice4FreeERKNS0_17AllocationOptionsEPv";
constexpr size_t kLargeBytes = size_t{32} << 20;  // below, starting threads takes longer
constexpr uintptr_t kPageBytes = 4096;

std::atomic<bool> enabled{false};

struct Blocks {
  std::mutex mutex;
  std::unordered_map<void*, size_t> bytes;
};

// Those that come from the system. Never destroyed: threads of OneFlow may still free memory when the process ends.
Blocks& blocks() {
  static Blocks* const all = new Blocks;
  return *all;
}

void map_pages(char* block, size_t size) {
  const size_t parts = num_threads();
  const size_t part = (size / parts + kPageBytes) / kPageBytes * kPageBytes;
  std::vector<std::thread> threads;
  for (size_t begin = 0; begin < size; begin += part) {
    const size_t bytes = std::min(part, size - begin);
    try {
      threads.emplace_back([=] { madvise(block + begin, bytes, MADV_POPULATE_WRITE); });
    } catch (const std::system_error&) {  // no more threads: the other pages are mapped at their first use
      break;
    }
  }
  for (std::thread& thread : threads) thread.join();
}

Maybe<void> alloc(CpuDevice* device, const AllocationOptions& options, void** block, size_t size) {
  if (!enabled || size < kLargeBytes || options.HasPinnedDevice()) return device->Alloc(options, block, size);
  void* const found = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return device->Alloc(options, block, size);
  map_pages(static_cast<char*>(found), size);
  const std::lock_guard<std::mutex> lock(blocks().mutex);
  blocks().bytes[found] = size;
  *block = found;
  return Maybe<void>::Ok();
}

// Returns the size of a block that comes from the system and forgets it; 0 for any other.
size_t take(void* block) {
  if (reinterpret_cast<uintptr_t>(block) % kPageBytes != 0) return 0;
  const std::lock_guard<std::mutex> lock(blocks().mutex);
  const auto found = blocks().bytes.find(block);
  if (found == blocks().bytes.end()) return 0;
  const size_t size = found->second;
  blocks().bytes.erase(found);
  return size;
}

void free_block(CpuDevice* device, const AllocationOptions& options, void* block) {
  if (const size_t size = take(block)) {
    munmap(block, size);
  } else {
    device->Free(options, block);
  }
}

bool redirect() {
  // `Free` first: its replacement accepts blocks of both kinds.
  return replace_import(kLibrary, kFree, reinterpret_cast<void*>(&free_block)) > 0
         && replace_import(kLibrary, kAlloc, reinterpret_cast<void*>(&alloc)) > 0;
}

}  // namespace

// Sets whether large blocks of host memory come directly from the system (1) or not (0). Returns 0 if this build of
// OneFlow cannot be patched.
extern "C" GT_EXPORT int graph_train_map_large_blocks(int on) {
  static const bool redirected = redirect();
  enabled = on != 0;
  return redirected;
}

// Bytes of all large blocks that come directly from the system. For tests.
extern "C" GT_EXPORT int64_t graph_train_mapped_bytes() {
  const std::lock_guard<std::mutex> lock(blocks().mutex);
  int64_t bytes = 0;
  for (const auto& [block, size] : blocks().bytes) bytes += size;
  return bytes;
}

}  // namespace graph_train
