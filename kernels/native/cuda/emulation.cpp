#include "native/cuda/emulation.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "native/common.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define GT_SANITIZED 1
#else
#define GT_SANITIZED 0
#endif

// Saves the callee-saved registers and the stack of the running fiber, and switches to another one.
extern "C" void graph_train_switch_fiber(void** save, void* load);
asm(R"(
.text
.globl graph_train_switch_fiber
.type graph_train_switch_fiber, @function
graph_train_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size graph_train_switch_fiber, .-graph_train_switch_fiber
)");

namespace graph_train::emulation {

thread_local Position position;

namespace {

constexpr size_t kStackBytes = GT_SANITIZED ? 256 << 10 : 64 << 10;
constexpr unsigned int kLanes = 32;
constexpr size_t kMaxSharedBytes = 48 << 10;  // of a block, without opting in to more

const Kernel*& kernels() {
  static const Kernel* first = nullptr;
  return first;
}

std::atomic<uint64_t> order_seed{0};  // 0: ascending order

[[noreturn]] void fail(const char* kernel, const char* what) {
  std::fprintf(stderr, "emulated CUDA kernel %s: %s\n", kernel, what);
  std::abort();
}

enum class Waiting { kNot, kBlock, kWarp, kSpin, kDone };

struct Block;

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  Position position;
  Waiting waiting = Waiting::kNot;
  Block* block = nullptr;
  // Double-buffered: a lane may write its next value while another one still reads the previous value.
  unsigned char exchanged[2][8] = {};
  unsigned int turn = 0;
  const char* exchange = nullptr;  // name of the function with which it exchanges values
};

struct Block {
  std::vector<Fiber*> fibers;
  size_t shared_bytes = 0;
  std::map<const void*, std::vector<char>> shared;
};

// Stacks are reused, because allocating them takes longer than a block.
struct Stacks {
  std::vector<char*> free;
  ~Stacks() {
    for (char* stack : free) munmap(stack, kStackBytes);
  }
  char* take() {
    if (!free.empty()) {
      char* stack = free.back();
      free.pop_back();
      return stack;
    }
    void* made = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (made == MAP_FAILED) fail("-", "out of memory for the stacks of its threads");
    return static_cast<char*>(made);
  }
};

// State of one host thread.
struct Worker {
  Stacks stacks;
  const Kernel* kernel = nullptr;
  const void* args = nullptr;
  Fiber* running = nullptr;
  Block* block = nullptr;
  void* scheduler_stack = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
};
thread_local Worker worker;

void enter(Fiber* fiber) {
  worker.running = fiber;
  worker.block = fiber->block;
  position = fiber->position;
#if GT_SANITIZED
  __sanitizer_start_switch_fiber(&worker.scheduler_fake_stack, fiber->stack, kStackBytes);
#endif
  graph_train_switch_fiber(&worker.scheduler_stack, fiber->stack_pointer);
#if GT_SANITIZED
  __sanitizer_finish_switch_fiber(worker.scheduler_fake_stack, nullptr, nullptr);
#endif
}

void leave(Waiting why) {
  Fiber* fiber = worker.running;
  fiber->waiting = why;
#if GT_SANITIZED
  __sanitizer_start_switch_fiber(why == Waiting::kDone ? nullptr : &fiber->fake_stack, worker.scheduler_bottom,
                                 worker.scheduler_size);
#endif
  graph_train_switch_fiber(&fiber->stack_pointer, worker.scheduler_stack);
#if GT_SANITIZED
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &worker.scheduler_bottom, &worker.scheduler_size);
#endif
}

void fiber_main() {
#if GT_SANITIZED
  __sanitizer_finish_switch_fiber(nullptr, &worker.scheduler_bottom, &worker.scheduler_size);
#endif
  worker.kernel->run(worker.args);
  leave(Waiting::kDone);
}

void prepare(Fiber* fiber) {
  fiber->stack = worker.stacks.take();
  auto** top = reinterpret_cast<void**>(fiber->stack + kStackBytes);
  *--top = nullptr;  // in place of a return address: keeps the stack aligned as the ABI requires
  *--top = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber->stack_pointer = top;
}

// The fibers of one warp, by lane.
std::vector<Fiber*> warp_of(const Block& block, size_t index) {
  const size_t first = index / kLanes * kLanes;
  return {block.fibers.begin() + first, block.fibers.begin() + std::min(first + kLanes, block.fibers.size())};
}

bool all_wait(const std::vector<Fiber*>& fibers, Waiting what) {
  return std::all_of(fibers.begin(), fibers.end(), [=](const Fiber* fiber) { return fiber->waiting == what; });
}

void release(const std::vector<Fiber*>& fibers) {
  for (Fiber* fiber : fibers) fiber->waiting = Waiting::kNot;
}

// Releases fibers that wait for nothing more; returns false if there are none.
bool release_complete(const std::vector<std::unique_ptr<Block>>& blocks) {
  bool released = false;
  for (const auto& block : blocks) {
    if (all_wait(block->fibers, Waiting::kBlock)) {
      release(block->fibers);
      released = true;
      continue;
    }
    for (size_t first = 0; first < block->fibers.size(); first += kLanes) {
      const auto warp = warp_of(*block, first);
      if (!all_wait(warp, Waiting::kWarp)) continue;
      if (std::any_of(warp.begin(), warp.end(), [&](const Fiber* lane) {
            return lane->turn != warp[0]->turn || std::strcmp(lane->exchange, warp[0]->exchange) != 0;
          })) {
        fail(worker.kernel->name, "lanes of a warp meet at different shuffles");
      }
      release(warp);
      released = true;
    }
  }
  return released;
}

// Runs blocks of fibers to their end.
void run_fibers(const std::vector<std::unique_ptr<Block>>& blocks, std::mt19937_64* random) {
  std::vector<Fiber*> all;
  for (const auto& block : blocks) all.insert(all.end(), block->fibers.begin(), block->fibers.end());
  for (Fiber* fiber : all) prepare(fiber);
  while (true) {
    if (random != nullptr) std::shuffle(all.begin(), all.end(), *random);
    bool ran = false;
    for (Fiber* fiber : all) {
      if (fiber->waiting == Waiting::kSpin) fiber->waiting = Waiting::kNot;
      if (fiber->waiting != Waiting::kNot) continue;
      enter(fiber);
      ran = true;
    }
    if (all_wait(all, Waiting::kDone)) break;
    if (!release_complete(blocks) && !ran) {
      fail(worker.kernel->name, "some threads wait at a barrier or shuffle that others never reach");
    }
  }
  for (Fiber* fiber : all) worker.stacks.free.push_back(fiber->stack);
}

std::unique_ptr<Block> make_block(Dimensions grid, Dimensions size, Dimensions number, std::vector<Fiber>* fibers) {
  auto block = std::make_unique<Block>();
  for (Fiber& fiber : *fibers) block->fibers.push_back(&fiber);
  unsigned int index = 0;
  for (unsigned int z = 0; z < size.z; ++z) {
    for (unsigned int y = 0; y < size.y; ++y) {
      for (unsigned int x = 0; x < size.x; ++x, ++index) {
        Fiber& fiber = (*fibers)[index];
        fiber = Fiber();
        fiber.position = {{x, y, z}, number, size, grid};
        fiber.block = block.get();
      }
    }
  }
  return block;
}

Dimensions number_of(Dimensions grid, uint64_t index) {
  return {static_cast<unsigned int>(index % grid.x), static_cast<unsigned int>(index / grid.x % grid.y),
          static_cast<unsigned int>(index / grid.x / grid.y)};
}

// A block without barriers: its threads are plain calls.
void run_calls(const Kernel& kernel, Dimensions grid, Dimensions size, Dimensions number, const void* args,
               std::mt19937_64* random) {
  Block block;
  worker.block = &block;
  worker.running = nullptr;
  std::vector<unsigned int> order(static_cast<size_t>(size.x) * size.y * size.z);
  std::iota(order.begin(), order.end(), 0u);
  if (random != nullptr) std::shuffle(order.begin(), order.end(), *random);
  for (const unsigned int index : order) {
    position = {number_of(size, index), number, size, grid};
    kernel.run(args);
  }
}

struct Order {
  explicit Order(uint64_t block) : seed(order_seed.load()), random(seed ^ (block * 0x9E3779B97F4A7C15ull)) {}
  std::mt19937_64* get() { return seed == 0 ? nullptr : &random; }
  uint64_t seed;
  std::mt19937_64 random;
};

void run_block(const Kernel& kernel, Dimensions grid, Dimensions size, uint64_t index, const void* args) {
  worker.kernel = &kernel;
  worker.args = args;
  Order order(index + 1);
  const Dimensions number = number_of(grid, index);
  if (!kernel.uses_barriers) return run_calls(kernel, grid, size, number, args, order.get());
  std::vector<Fiber> fibers(static_cast<size_t>(size.x) * size.y * size.z);
  std::vector<std::unique_ptr<Block>> blocks;
  blocks.push_back(make_block(grid, size, number, &fibers));
  run_fibers(blocks, order.get());
}

void run_cooperative(const Kernel& kernel, Dimensions grid, Dimensions size, uint64_t count, const void* args) {
  worker.kernel = &kernel;
  worker.args = args;
  Order order(0);
  std::vector<std::vector<Fiber>> fibers(count);
  std::vector<std::unique_ptr<Block>> blocks;
  for (uint64_t index = 0; index < count; ++index) {
    fibers[index].resize(static_cast<size_t>(size.x) * size.y * size.z);
    blocks.push_back(make_block(grid, size, number_of(grid, index), &fibers[index]));
  }
  run_fibers(blocks, order.get());
}

}  // namespace

Kernel::Kernel(const char* name, size_t args_bytes, int max_threads, bool uses_barriers, void (*run)(const void*))
    : name(name), args_bytes(args_bytes), max_threads(max_threads), uses_barriers(uses_barriers), run(run),
      next(kernels()) {
  kernels() = this;
}

const Kernel* find_kernel(const char* name) {
  for (const Kernel* kernel = kernels(); kernel != nullptr; kernel = kernel->next) {
    if (std::strcmp(kernel->name, name) == 0) return kernel;
  }
  return nullptr;
}

void run(const Kernel& kernel, Dimensions grid, Dimensions block, const void* args, bool together) {
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  if (static_cast<int>(block.x * block.y * block.z) > kernel.max_threads) fail(kernel.name, "too many threads a block");
  if (together) return run_cooperative(kernel, grid, block, blocks, args);
  parallel_for(static_cast<int64_t>(blocks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) run_block(kernel, grid, block, index, args);
  });
}

void block_barrier() {
  if (worker.running == nullptr) fail(worker.kernel->name, "has a barrier: declare it as GT_BLOCK_KERNEL");
  leave(Waiting::kBlock);
}

void exchange_in_warp(const char* function, unsigned int mask, const void* own, size_t bytes) {
  if (worker.running == nullptr) fail(worker.kernel->name, "has a warp shuffle: declare it as GT_BLOCK_KERNEL");
  if (mask != 0xffffffffu) fail(worker.kernel->name, "a warp shuffle's mask must contain all lanes");
  Fiber* fiber = worker.running;
  fiber->exchange = function;
  fiber->turn ^= 1;
  std::memcpy(fiber->exchanged[fiber->turn], own, bytes);
  leave(Waiting::kWarp);
}

const void* of_lane(unsigned int lane) {
  const Dimensions at = position.thread, size = position.block_size;
  const size_t index = (static_cast<size_t>(at.z) * size.y + at.y) * size.x + at.x;
  return worker.block->fibers.at(index / kLanes * kLanes + lane)->exchanged[worker.running->turn];
}

void spin() {
  if (worker.running == nullptr) fail(worker.kernel->name, "waits for another block: declare it as GT_BLOCK_KERNEL");
  leave(Waiting::kSpin);
}

void* shared_memory(const void* key, size_t bytes) {
  auto& memory = worker.block->shared[key];
  // Not zero, because on a GPU the content is undefined.
  if (memory.empty()) {
    memory.assign(bytes, static_cast<char>(0xA5));
    worker.block->shared_bytes += bytes;
    if (worker.block->shared_bytes > kMaxSharedBytes) fail(worker.kernel->name, "more than 48 KiB of shared memory");
  }
  return memory.data();
}

}  // namespace graph_train::emulation

namespace graph_train {

// Sets the seed for the order of the threads of a block; 0: ascending order.
extern "C" GT_EXPORT void graph_train_emulated_order(uint64_t seed) { emulation::order_seed = seed; }

}  // namespace graph_train
