// cuDNN's convolutions on the CPU: descriptors are checked; results are computed in float32 and rounded once.
#ifdef GT_EMULATED_CUDA

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "native/cuda/emulated_device.h"
#include "native/number_types.h"
#include "ops/convolution/convolution.h"

namespace graph_train::cuda {

namespace {

using namespace cudnn;

constexpr Status kBadParameter = 3, kNotSupported = 9;
// Workspace of every usable algorithm; tests may require more.
constexpr size_t kLeastWorkspace = 1000;
std::atomic<size_t> workspace_of_all{kLeastWorkspace};
std::atomic<int> some_are_deterministic{1};

enum class Kind { kTensor, kFilter, kConvolution };

// Descriptors are never freed, like those of the plans.
struct Described {
  Kind kind;
  DataType type;
  int sizes[4];  // n, c, h, w or k, c, h, w
  int padding[2], stride[2], dilation[2];
  int groups;
  Math math;
};

[[noreturn]] void fail(const char* what) {
  LOG(FATAL) << "emulated cuDNN: " << what;
  std::abort();
}

Described& get(Descriptor descriptor, Kind kind) {
  auto* described = static_cast<Described*>(descriptor);
  if (described == nullptr || described->kind != kind) fail("wrong kind of descriptor");
  return *described;
}

template<Kind kind>
Status create(Descriptor* descriptor) {
  *descriptor = new Described{kind, DataType::kFloat, {}, {}, {}, {}, 1, Math::kDefault};
  return 0;
}

const char* error_string(Status) { return "emulated"; }

Status set_sizes(Described* of, DataType type, Format format, int n, int c, int h, int w) {
  if (n < 1 || c < 1 || h < 1 || w < 1 || format != Format::kChannelsLast) return kBadParameter;
  of->type = type;
  const int sizes[] = {n, c, h, w};
  std::copy(sizes, sizes + 4, of->sizes);
  return 0;
}

Status set_tensor(Descriptor descriptor, Format format, DataType type, int n, int c, int h, int w) {
  return set_sizes(&get(descriptor, Kind::kTensor), type, format, n, c, h, w);
}

Status set_filter(Descriptor descriptor, DataType type, Format format, int k, int c, int h, int w) {
  return set_sizes(&get(descriptor, Kind::kFilter), type, format, k, c, h, w);
}

Status set_convolution(Descriptor descriptor, int pad_rows, int pad_columns, int stride_rows, int stride_columns,
                       int dilation_rows, int dilation_columns, Mode mode, DataType compute_type) {
  if (mode != Mode::kCrossCorrelation || compute_type != DataType::kFloat) return kNotSupported;
  Described& of = get(descriptor, Kind::kConvolution);
  const int padding[] = {pad_rows, pad_columns}, stride[] = {stride_rows, stride_columns},
            dilation[] = {dilation_rows, dilation_columns};
  std::copy(padding, padding + 2, of.padding);
  std::copy(stride, stride + 2, of.stride);
  std::copy(dilation, dilation + 2, of.dilation);
  return 0;
}

Status set_groups(Descriptor descriptor, int groups) {
  get(descriptor, Kind::kConvolution).groups = groups;
  return 0;
}

Status set_math(Descriptor descriptor, Math math) {
  get(descriptor, Kind::kConvolution).math = math;
  return 0;
}

int output_length(const Described& convolution, int axis, int in, int kernel) {
  const int reach = convolution.dilation[axis] * (kernel - 1) + 1;
  return (in + 2 * convolution.padding[axis] - reach) / convolution.stride[axis] + 1;
}

Status output_size(Descriptor of, Descriptor x, Descriptor filter, int* n, int* c, int* h, int* w) {
  const Described &convolution = get(of, Kind::kConvolution), &in = get(x, Kind::kTensor),
                  &by = get(filter, Kind::kFilter);
  *n = in.sizes[0];
  *c = by.sizes[0];
  *h = output_length(convolution, 0, in.sizes[2], by.sizes[2]);
  *w = output_length(convolution, 1, in.sizes[3], by.sizes[3]);
  return 0;
}

// The three tensors of a pass by name, independent of the order of the pass's arguments.
template<typename T>
struct Named {
  T x, weights, y;
};

template<ConvolutionPass pass, typename T>
Named<T> named(T first, T second, T result) {
  if (pass == ConvolutionPass::kForward) return {first, second, result};
  if (pass == ConvolutionPass::kDataGradient) return {result, first, second};
  return {first, result, second};
}

// Returns the shape; aborts if the descriptors do not match.
ConvolutionShape checked_shape(const Named<Descriptor>& of, Descriptor descriptor) {
  const Described &x = get(of.x, Kind::kTensor), &weights = get(of.weights, Kind::kFilter),
                  &y = get(of.y, Kind::kTensor), &convolution = get(descriptor, Kind::kConvolution);
  int out[4];
  output_size(descriptor, of.x, of.weights, out, out + 1, out + 2, out + 3);
  if (!std::equal(out, out + 4, y.sizes)) fail("wrong output size");
  if (x.sizes[1] != weights.sizes[1] * convolution.groups || y.sizes[1] % convolution.groups != 0) {
    fail("channels and groups do not match");
  }
  if (x.type != weights.type || x.type != y.type) fail("different types");
  const Math wanted = x.type == DataType::kFloat ? Math::kFusedMultiplyAdd : Math::kTensorCores;
  if (convolution.math != wanted) fail("float32 without TF32 and 16-bit types with tensor cores are expected");
  ConvolutionShape s{};
  s.batch = x.sizes[0], s.in_channels = x.sizes[1], s.in_height = x.sizes[2], s.in_width = x.sizes[3];
  s.out_channels = y.sizes[1], s.out_height = y.sizes[2], s.out_width = y.sizes[3];
  s.kernel_height = weights.sizes[2], s.kernel_width = weights.sizes[3];
  s.stride_height = convolution.stride[0], s.stride_width = convolution.stride[1];
  s.pad_top = convolution.padding[0], s.pad_left = convolution.padding[1];
  s.dilation_height = convolution.dilation[0], s.dilation_width = convolution.dilation[1];
  s.groups = convolution.groups;
  s.channels_last = s.weights_channels_last = 1;
  return s;
}

// As on a GPU: first algorithms that are nondeterministic, unsupported, need too much memory or fail when they run, then
// usable ones.
constexpr size_t kHugeWorkspace = size_t{1} << 40;
enum Algorithm { kRacing, kUnsupported, kHuge, kRefused, kFailing, kGood, kSlow };

template<ConvolutionPass pass>
Status find_algorithms(Handle, Descriptor first, Descriptor second, Descriptor convolution, Descriptor result,
                       int wanted, int* found, Performance* list) {
  checked_shape(named<pass>(first, second, result), convolution);
  const Math math = get(convolution, Kind::kConvolution).math;
  const size_t bytes = workspace_of_all;
  const int always = some_are_deterministic;
  const Performance all[] = {
      {kRacing, 0, 0.1f, bytes, 0, math, {}},
      {kUnsupported, kNotSupported, -1, 0, always, math, {}},
      {kHuge, 0, 0.2f, kHugeWorkspace, always, math, {}},
      {kRefused, 0, 0.3f, bytes, always, math, {}},
      {kFailing, 0, 0.35f, bytes, always, math, {}},
      {kGood, 0, 0.4f, bytes, always, math, {}},
      {kSlow, 0, 0.5f, bytes, always, math, {}},
  };
  *found = std::min<int>(wanted, std::size(all));
  std::copy(all, all + *found, list);
  return 0;
}

// Whether the deterministic algorithms need more memory than there is.
bool only_racing_fits() { return workspace_of_all >= kHugeWorkspace; }

Status workspace_bytes(Handle, Descriptor, Descriptor, Descriptor, Descriptor, int algorithm, size_t* bytes) {
  *bytes = algorithm == kHuge ? kHugeWorkspace : workspace_of_all.load();
  if (algorithm == kRacing && only_racing_fits()) *bytes = kLeastWorkspace;
  return algorithm == kRefused ? kNotSupported : 0;
}

int64_t count_of(Descriptor descriptor) {
  const int* sizes = static_cast<const Described*>(descriptor)->sizes;
  return int64_t{1} * sizes[0] * sizes[1] * sizes[2] * sizes[3];
}

// Convert a tensor of any type to float32 and back.
template<typename T>
void widen(const void* from, std::vector<float>* to) {
  for (size_t i = 0; i < to->size(); ++i) (*to)[i] = to_float(static_cast<const T*>(from)[i]);
}

template<typename T>
void narrow(const std::vector<float>& from, void* to) {
  for (size_t i = 0; i < from.size(); ++i) static_cast<T*>(to)[i] = from_float<T>(from[i]);
}

template<ConvolutionPass pass, typename T>
void compute(const ConvolutionShape& shape, const Named<Descriptor>& of, const Named<void*>& data, void* result_data) {
  std::vector<float> x(count_of(of.x)), weights(count_of(of.weights)), y(count_of(of.y));
  if (pass != ConvolutionPass::kDataGradient) widen<T>(data.x, &x);
  if (pass != ConvolutionPass::kFilterGradient) widen<T>(data.weights, &weights);
  if (pass != ConvolutionPass::kForward) widen<T>(data.y, &y);
  convolve(pass, shape, x.data(), weights.data(), y.data());
  const auto& result = pass == ConvolutionPass::kForward ? y : pass == ConvolutionPass::kDataGradient ? x : weights;
  narrow<T>(result, result_data);
}

template<ConvolutionPass pass>
Status run(Handle, const void* alpha, Descriptor first, const void* first_data, Descriptor second,
           const void* second_data, Descriptor convolution, int algorithm, void* workspace, size_t bytes,
           const void* beta, Descriptor result, void* result_data) {
  const auto of = named<pass>(first, second, result);
  const ConvolutionShape shape = checked_shape(of, convolution);
  if (algorithm == kFailing) return kNotSupported;
  if (algorithm != (some_are_deterministic != 0 && !only_racing_fits() ? kGood : kRacing))
    fail("this algorithm must not be chosen");
  if (workspace == nullptr || bytes < kLeastWorkspace) fail("the workspace is too small");
  if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0)
    fail("alpha must be 1 and beta 0");
  std::memset(workspace, 0xA5, kLeastWorkspace);
  const auto data = named<pass>(const_cast<void*>(first_data), const_cast<void*>(second_data), result_data);
  for (const void* pointer : {data.x, data.weights, data.y}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) fail("a tensor is not aligned to 16 bytes");
  }
  switch (get(of.x, Kind::kTensor).type) {
    case DataType::kFloat: compute<pass, float>(shape, of, data, result_data); return 0;
    case DataType::kHalf: compute<pass, Half>(shape, of, data, result_data); return 0;
    case DataType::kBfloat16: compute<pass, Bfloat16>(shape, of, data, result_data); return 0;
  }
  return kNotSupported;
}

template<ConvolutionPass pass>
constexpr Pass functions() {
  return {find_algorithms<pass>, workspace_bytes, run<pass>};
}

}  // namespace

const Library& emulated_cudnn() {
  static const Library table{error_string,
                             nullptr,  // the emulation needs no handle
                             nullptr,
                             create<Kind::kTensor>,
                             create<Kind::kFilter>,
                             create<Kind::kConvolution>,
                             set_tensor,
                             set_filter,
                             set_convolution,
                             set_groups,
                             set_math,
                             output_size,
                             functions<ConvolutionPass::kForward>(),
                             functions<ConvolutionPass::kDataGradient>(),
                             functions<ConvolutionPass::kFilterGradient>()};
  return table;
}

// Sets the workspace in bytes that every algorithm needs from now on, and whether any of them is deterministic (0 or
// 1).
extern "C" GT_EXPORT void graph_train_emulated_cudnn_offers(uint64_t workspace, int deterministic) {
  workspace_of_all = workspace;
  some_are_deterministic = deterministic;
}

}  // namespace graph_train::cuda

#endif  // GT_EMULATED_CUDA
