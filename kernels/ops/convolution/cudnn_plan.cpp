#include "ops/convolution/cudnn_plan.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>
#include <tuple>

namespace graph_train {

namespace {

using cudnn::Math;

// Algorithms that need more workspace are used only if there is no other.
constexpr size_t kMaxWorkspace = size_t{256} << 20;
// More than the number of algorithms of any pass times the number of math types.
constexpr int kMaxAlgorithms = 32;

struct Operands {
  cudnn::Descriptor first, second, result;
};

// In the argument order of cuDNN's functions.
Operands operands_of(ConvolutionPass pass, const CudnnDescriptors& of) {
  switch (pass) {
    case ConvolutionPass::kForward: return {of.x, of.weights, of.y};
    case ConvolutionPass::kDataGradient: return {of.weights, of.y, of.x};
    default: return {of.x, of.y, of.weights};
  }
}

const cudnn::Pass& functions_of(ConvolutionPass pass) {
  switch (pass) {
    case ConvolutionPass::kForward: return cudnn::library().forward;
    case ConvolutionPass::kDataGradient: return cudnn::library().data_gradient;
    default: return cudnn::library().filter_gradient;
  }
}

struct Choice {
  int algorithm;
  Math math;
  bool deterministic;
  size_t workspace_bytes;
};

// The choices are those that cuDNN has not refused to run, the best first.
struct Plan {
  Operands operands;
  cudnn::Descriptor convolution;
  std::deque<Choice> choices;
  bool has_run = false;
};

Math arithmetic(cudnn::DataType type) {
  return type == cudnn::DataType::kFloat ? Math::kFusedMultiplyAdd : Math::kTensorCores;
}

// Whether float32 is computed as such.
bool is_exact_enough(const cudnn::Performance& found, cudnn::DataType type) {
  const bool rounds_factors = found.math == Math::kTensorCores || found.math == Math::kTensorCoresAllowConversion;
  return !(rounds_factors && type == cudnn::DataType::kFloat);
}

// The allowed algorithms: deterministic ones first, then those that need at most kMaxWorkspace, in the order of cuDNN's
// list, which is that of the expected time, then the others by their workspace.
std::deque<Choice> list_choices(cudnn::Handle handle, const cudnn::Pass& functions, cudnn::DataType type,
                                const Operands& operands, cudnn::Descriptor convolution) {
  cudnn::Performance list[kMaxAlgorithms];
  int number = 0;
  const auto& [first, second, result] = operands;
  cudnn::check(functions.find_algorithms(handle, first, second, convolution, result, kMaxAlgorithms, &number, list),
               "find_algorithms");
  std::deque<Choice> choices;
  for (const auto* found = list; found != list + number; ++found) {
    if (found->status != 0 || !is_exact_enough(*found, type)) continue;
    // The math type belongs to the algorithm; the default for float32 would be TF32.
    const Math math = type == cudnn::DataType::kFloat ? Math::kFusedMultiplyAdd : found->math;
    GT_CUDNN_CHECK(set_math(convolution, math));
    size_t bytes = 0;
    if (functions.workspace_bytes(handle, first, second, convolution, result, found->algorithm, &bytes) != 0) continue;
    choices.push_back({found->algorithm, math, found->deterministic != 0, bytes});
  }
  std::stable_sort(choices.begin(), choices.end(), [](const Choice& one, const Choice& other) {
    const auto rank = [](const Choice& choice) {
      const size_t bytes = choice.workspace_bytes;
      return std::tuple(!choice.deterministic, bytes <= kMaxWorkspace ? 0 : bytes);
    };
    return rank(one) < rank(other);
  });
  return choices;
}

std::string description(ConvolutionPass pass, const ConvolutionShape& s) {
  const char* names[] = {"forward", "data gradient", "filter gradient"};
  std::ostringstream text;
  text << names[static_cast<int>(pass)] << " of x (" << s.batch << ", " << s.in_height << ", " << s.in_width << ", "
       << s.in_channels << "), weights (" << s.out_channels << ", " << s.kernel_height << ", " << s.kernel_width << ", "
       << s.in_channels / s.groups << "), " << s.groups << " groups";
  return text.str();
}

Plan make_plan(cudnn::Handle handle, ConvolutionPass pass, const ConvolutionShape& shape, cudnn::DataType type) {
  const CudnnDescriptors descriptors = make_descriptors(shape, type);
  const Operands operands = operands_of(pass, descriptors);
  auto choices = list_choices(handle, functions_of(pass), type, operands, descriptors.convolution);
  CHECK(!choices.empty()) << "cuDNN has no algorithm for this convolution: " << description(pass, shape);
  GT_CUDNN_CHECK(set_math(descriptors.convolution, choices.front().math));
  return {operands, descriptors.convolution, std::move(choices)};
}

// Call it with the lock of the plans.
Plan& cached_plan(int device, cudnn::Handle handle, ConvolutionPass pass, const ConvolutionShape& shape,
                  cudnn::DataType type) {
  static_assert(sizeof(ConvolutionShape) % sizeof(int64_t) == 0, "all members are int64_t");
  using Sizes = std::array<int64_t, sizeof(ConvolutionShape) / sizeof(int64_t)>;
  static auto* plans = new std::map<std::tuple<int, ConvolutionPass, cudnn::DataType, Sizes>, Plan>;
  Sizes sizes;
  std::memcpy(sizes.data(), &shape, sizeof(shape));
  const std::tuple key{device, pass, type, sizes};
  const auto known = plans->find(key);
  if (known != plans->end()) return known->second;
  return plans->emplace(key, make_plan(handle, pass, shape, type)).first->second;
}

cudnn::Status run_choice(const cuda::Queue& queue, cudnn::Handle handle, const cudnn::Pass& functions, const Plan& plan,
                         void* const* data) {
  const Choice& choice = plan.choices.front();
  const size_t bytes = choice.workspace_bytes;
  void* const workspace = bytes == 0 ? nullptr : cuda::workspace(queue, bytes);
  if (bytes > 0 && workspace == nullptr) return cudnn::kAllocationFailed;
  const auto& [first, second, result] = plan.operands;
  const float alpha = 1, beta = 0;
  return functions.run(handle, &alpha, first, data[0], second, data[1], plan.convolution, choice.algorithm, workspace,
                       bytes, &beta, result, data[2]);
}

}  // namespace

CudnnDescriptors make_descriptors(const ConvolutionShape& shape, cudnn::DataType type) {
  constexpr auto kLast = cudnn::Format::kChannelsLast;
  CudnnDescriptors d{};
  GT_CUDNN_CHECK(create_tensor(&d.x));
  GT_CUDNN_CHECK(create_filter(&d.weights));
  GT_CUDNN_CHECK(create_tensor(&d.y));
  GT_CUDNN_CHECK(create_convolution(&d.convolution));
  const auto& s = shape;
  GT_CUDNN_CHECK(set_tensor(d.x, kLast, type, s.batch, s.in_channels, s.in_height, s.in_width));
  GT_CUDNN_CHECK(
      set_filter(d.weights, type, kLast, s.out_channels, s.in_channels / s.groups, s.kernel_height, s.kernel_width));
  GT_CUDNN_CHECK(set_tensor(d.y, kLast, type, s.batch, s.out_channels, s.out_height, s.out_width));
  GT_CUDNN_CHECK(set_convolution(d.convolution, s.pad_top, s.pad_left, s.stride_height, s.stride_width,
                                 s.dilation_height, s.dilation_width, cudnn::Mode::kCrossCorrelation,
                                 cudnn::DataType::kFloat));
  GT_CUDNN_CHECK(set_groups(d.convolution, s.groups));
  GT_CUDNN_CHECK(set_math(d.convolution, arithmetic(type)));
  return d;
}

void convolve_with_cudnn(const cuda::Queue& queue, cudnn::Handle handle, ConvolutionPass pass,
                         const ConvolutionShape& shape, cudnn::DataType type, void* x, void* weights, void* y) {
  for (const void* pointer : {x, weights, y}) {
    CHECK(reinterpret_cast<uintptr_t>(pointer) % 16 == 0)
        << "a convolution on CUDA needs tensors that start at a multiple of 16 bytes: copy the view of a tensor first";
  }
  cuda::make_current(queue.device);
  void* data[] = {x, weights, y};
  if (pass == ConvolutionPass::kDataGradient) std::rotate(data, data + 1, data + 3);
  if (pass == ConvolutionPass::kFilterGradient) std::swap(data[1], data[2]);
  const char* names[] = {"cudnn_forward", "cudnn_data_gradient", "cudnn_filter_gradient"};
  const char* name = names[static_cast<int>(pass)];
  static std::mutex mutex;  // a change of the math type changes a descriptor that other threads use
  const std::lock_guard<std::mutex> lock(mutex);
  Plan& plan = cached_plan(queue.device, handle, pass, shape, type);
  const auto first_status = run_choice(queue, handle, functions_of(pass), plan, data);
  auto status = first_status;
  // cuDNN lists some algorithms that it then refuses to run; for others, memory may not suffice.
  while (status != 0 && !plan.has_run && plan.choices.size() > 1) {
    plan.choices.pop_front();
    GT_CUDNN_CHECK(set_math(plan.convolution, plan.choices.front().math));
    status = run_choice(queue, handle, functions_of(pass), plan, data);
  }
  cudnn::check(status == 0 ? status : first_status, name);
  if (!plan.has_run && !plan.choices.front().deterministic) {
    std::cerr
        << "graph-train: cuDNN has no deterministic algorithm for this convolution (or not enough memory for it), "
           "results may differ in the last digits from run to run: "
        << description(pass, shape) << std::endl;
  }
  plan.has_run = true;
  cuda::count(name);
}

// For tests: (n, c, h, w) of the output according to cuDNN; `sizes` is a ConvolutionShape; its output sizes are not
// read.
extern "C" GT_EXPORT void graph_train_cudnn_output_size(const int64_t* sizes, int type, int* output) {
  ConvolutionShape shape;
  std::memcpy(&shape, sizes, sizeof(shape));
  shape.out_height = shape.out_width = 1;
  const CudnnDescriptors d = make_descriptors(shape, static_cast<cudnn::DataType>(type));
  GT_CUDNN_CHECK(output_size(d.convolution, d.x, d.weights, output, output + 1, output + 2, output + 3));
}

}  // namespace graph_train
