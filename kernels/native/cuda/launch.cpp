#include "native/cuda/launch.h"

#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#include "native/cuda/oneflow_stream.h"
#include "oneflow/core/ep/include/device.h"

namespace graph_train::cuda {

namespace {

constexpr size_t kTableBytes = size_t{64} << 20;  // per stream
constexpr Result kOutOfMemory = 2;

struct Table {
  std::string content;
  Pointer memory;
};

// The tables of a stream, the most recently used first.
struct Tables {
  std::list<Table> list;
  size_t bytes = 0;
};

// Context, modules and functions of one device.
struct DeviceState {
  Context context = nullptr;
  std::vector<Module> modules;
  std::map<std::string, Function> functions;
};

std::mutex& mutex() {
  static std::mutex made;
  return made;
}

// The cubins or PTX of a device that were passed to graph_train_cuda_add_image.
std::vector<std::string>& images_of(int device) {
  static auto* made = new std::map<int, std::vector<std::string>>;
  auto& images = (*made)[device];
#ifdef GT_EMULATED_CUDA
  if (images.empty()) images.emplace_back("compiled into this library");
#endif
  return images;
}

DeviceState& device_state(int device) {
  static auto* devices = new std::map<int, DeviceState>;
  DeviceState& here = (*devices)[device];
  if (here.context == nullptr) {
    Device handle;
    GT_CUDA_CHECK(device_get(&handle, device));
    GT_CUDA_CHECK(primary_context_retain(&here.context, handle));
  }
  return here;
}

// The runtime API that OneFlow uses makes the device's primary context current, but perhaps not in this thread yet.
DeviceState& enter(int device) {
  DeviceState& here = device_state(device);
  Context current = nullptr;
  GT_CUDA_CHECK(context_get_current(&current));
  if (current != here.context) GT_CUDA_CHECK(context_set_current(here.context));
  return here;
}

Function function_of(int device, const std::string& name) {
  DeviceState* const here = &enter(device);
  const auto known = here->functions.find(name);
  if (known != here->functions.end()) return known->second;
  if (here->modules.empty()) {
    const auto& images = images_of(device);
    CHECK(!images.empty()) << "no compiled CUDA kernels were given to the plugin for GPU " << device;
    for (const std::string& image : images) {
      here->modules.emplace_back();
      GT_CUDA_CHECK(module_load_data(&here->modules.back(), image.data()));
    }
  }
  for (const Module module : here->modules) {
    Function found = nullptr;
    if (driver().module_get_function(&found, module, name.c_str()) == 0) return here->functions[name] = found;
  }
  LOG(FATAL) << "the compiled CUDA kernels lack " << name;
  return nullptr;
}

std::map<std::string, int64_t>& counts() {
  static auto* made = new std::map<std::string, int64_t>;
  return *made;
}

std::set<std::string>& covered_ops() {
  static auto* made = new std::set<std::string>;
  return *made;
}

int attribute(int device, Attribute which) {
  static auto* known = new std::map<std::pair<int, Attribute>, int>;
  const std::lock_guard<std::mutex> lock(mutex());
  const auto found = known->find({device, which});
  if (found != known->end()) return found->second;
  Device handle;
  int value = 0;
  GT_CUDA_CHECK(device_get(&handle, device));
  GT_CUDA_CHECK(device_get_attribute(&value, static_cast<int>(which), handle));
  return (*known)[{device, which}] = value;
}

}  // namespace

Queue queue_of(user_op::KernelComputeContext* ctx) {
#ifdef GT_EMULATED_CUDA
  return {0, ctx->stream()};  // only to distinguish kernels that run concurrently
#else
  auto* stream = ctx->stream();
  return {static_cast<int>(stream->device()->device_index()),
          reinterpret_cast<oneflow::ep::CudaStream*>(stream)->cuda_stream()};
#endif
}

void make_current(int device) {
  const std::lock_guard<std::mutex> lock(mutex());
  enter(device);
}

namespace {

// Finds a kernel and counts its launch.
Function function_to_launch(const Queue& queue, const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex());
  const Function function = function_of(queue.device, name);
  ++counts()[name];
  return function;
}

}  // namespace

void launch_raw(const Queue& queue, const std::string& name, Size grid, unsigned int threads, const void* args) {
  const Function function = function_to_launch(queue, name);
  void* parameters[] = {const_cast<void*>(args)};
  GT_CUDA_CHECK(launch_kernel(function, grid.x, grid.y, grid.z, threads, 1, 1, 0, queue.stream, parameters, nullptr));
}

int64_t cooperative_blocks(const Queue& queue, const std::string& name, int64_t max_blocks, unsigned int threads) {
  int blocks_per_multiprocessor = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex());
    GT_CUDA_CHECK(occupancy(&blocks_per_multiprocessor, function_of(queue.device, name), static_cast<int>(threads), 0));
  }
  const int64_t fit = static_cast<int64_t>(blocks_per_multiprocessor) * multiprocessors(queue.device);
  return std::max<int64_t>(1, std::min(fit, max_blocks));
}

void launch_cooperative_raw(const Queue& queue, const std::string& name, int64_t max_blocks, unsigned int threads,
                            const void* args) {
  const auto blocks = static_cast<unsigned int>(cooperative_blocks(queue, name, max_blocks, threads));
  const Function function = function_to_launch(queue, name);
  void* parameters[] = {const_cast<void*>(args)};
  GT_CUDA_CHECK(launch_cooperative_kernel(function, blocks, 1, 1, threads, 1, 1, 0, queue.stream, parameters));
}

unsigned int* grid_counters(const Queue& queue) {
  static auto* of_streams = new std::map<std::pair<int, Stream>, Pointer>;
  const std::lock_guard<std::mutex> lock(mutex());
  Pointer& memory = (*of_streams)[{queue.device, queue.stream}];
  if (memory == 0) {
    enter(queue.device);
    GT_CUDA_CHECK(memory_allocate(&memory, 2 * sizeof(unsigned int)));
    GT_CUDA_CHECK(memory_set(memory, 0, 2 * sizeof(unsigned int), queue.stream));
  }
  return reinterpret_cast<unsigned int*>(memory);
}

void* workspace(const Queue& queue, size_t bytes) {
  struct Block {
    Pointer memory = 0;
    size_t bytes = 0;
  };
  static auto* of_streams = new std::map<std::pair<int, Stream>, Block>;
  const std::lock_guard<std::mutex> lock(mutex());
  Block& block = (*of_streams)[{queue.device, queue.stream}];
  if (block.bytes < bytes) {
    enter(queue.device);
    if (block.memory != 0) {
      GT_CUDA_CHECK(stream_synchronize(queue.stream));  // launched kernels may still use it
      GT_CUDA_CHECK(memory_free(block.memory));
    }
    block = {};
    const Result result = driver().memory_allocate(&block.memory, bytes);
    if (result == kOutOfMemory) return nullptr;
    check(result, "memory_allocate");
    block.bytes = bytes;
  }
  return reinterpret_cast<void*>(block.memory);
}

const void* device_table_raw(const Queue& queue, const void* table, size_t bytes) {
  static auto* of_streams = new std::map<std::pair<int, Stream>, Tables>;
  const std::lock_guard<std::mutex> lock(mutex());
  auto& tables = (*of_streams)[{queue.device, queue.stream}];
  auto& list = tables.list;
  for (auto entry = list.begin(); entry != list.end(); ++entry) {
    if (entry->content.size() != bytes || std::memcmp(entry->content.data(), table, bytes) != 0) continue;
    list.splice(list.begin(), list, entry);
    return reinterpret_cast<const void*>(entry->memory);
  }
  enter(queue.device);
  if (tables.bytes + bytes > kTableBytes && !list.empty()) {
    GT_CUDA_CHECK(stream_synchronize(queue.stream));  // launched kernels may still read them
  }
  while (tables.bytes + bytes > kTableBytes && !list.empty()) {
    GT_CUDA_CHECK(memory_free(list.back().memory));
    tables.bytes -= list.back().content.size();
    list.pop_back();
  }
  list.push_front({std::string(static_cast<const char*>(table), bytes), 0});
  tables.bytes += bytes;
  GT_CUDA_CHECK(memory_allocate(&list.front().memory, bytes));
  // Copied from the entry's content, whose address does not change before the copy is done.
  GT_CUDA_CHECK(memory_copy_to_device(list.front().memory, list.front().content.data(), bytes, queue.stream));
  return reinterpret_cast<const void*>(list.front().memory);
}

void set_zero(const Queue& queue, void* memory, size_t bytes) {
  if (bytes == 0) return;
  {
    const std::lock_guard<std::mutex> lock(mutex());
    enter(queue.device);
    ++counts()["memset"];
  }
  GT_CUDA_CHECK(memory_set(reinterpret_cast<Pointer>(memory), 0, bytes, queue.stream));
}

int multiprocessors(int device) { return attribute(device, Attribute::kMultiprocessors); }

int compute_capability(int device) {
  return 10 * attribute(device, Attribute::kMajor) + attribute(device, Attribute::kMinor);
}

std::string name_of(const char* kernel, oneflow::DataType type) {
  switch (type) {
    case oneflow::DataType::kFloat: return std::string(kernel) + "_f32";
    case oneflow::DataType::kBFloat16: return std::string(kernel) + "_bf16";
    case oneflow::DataType::kFloat16: return std::string(kernel) + "_f16";
    default: LOG(FATAL) << kernel << ": no CUDA kernel for this data type";
  }
  return "";
}

Covered::Covered(const char* op) { covered_ops().insert(op); }

void count(const std::string& what) {
  const std::lock_guard<std::mutex> lock(mutex());
  ++counts()[what];
}

namespace {

// The text stays valid until the next call from this thread.
const char* keep_text(const std::string& text) {
  thread_local std::string last;
  last = text;
  return last.c_str();
}

}  // namespace

// Adds a cubin, or null-terminated PTX, for a device; call it before the first kernel is launched on the device.
extern "C" GT_EXPORT void graph_train_cuda_add_image(int device, const char* image, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex());
  images_of(device).emplace_back(image, bytes);
}

// Names of the ops that have a CUDA kernel, one per line.
extern "C" GT_EXPORT const char* graph_train_cuda_ops() {
  std::ostringstream names;
  for (const std::string& op : covered_ops()) names << op << '\n';
  return keep_text(names.str());
}

// Numbers of launches, cuDNN calls and memsets since the last reset: name, space, number; one per line.
extern "C" GT_EXPORT const char* graph_train_cuda_counts() {
  const std::lock_guard<std::mutex> lock(mutex());
  std::ostringstream lines;
  for (const auto& [name, number] : counts()) lines << name << ' ' << number << '\n';
  return keep_text(lines.str());
}

extern "C" GT_EXPORT void graph_train_cuda_reset_counts() {
  const std::lock_guard<std::mutex> lock(mutex());
  counts().clear();
}

}  // namespace graph_train::cuda
