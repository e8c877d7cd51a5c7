#include "ops/convolution/cudnn_plan.h"

#include <algorithm>
#include <cstring>
#include <iostream>
#include <limits>
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

struct Plan {
  Operands operands;
  cudnn::Descriptor convolution;
  int algorithm = 0;
  size_t workspace_bytes = 0;
};

Math arithmetic(cudnn::DataType type) {
  return type == cudnn::DataType::kFloat ? Math::kFusedMultiplyAdd : Math::kTensorCores;
}

bool is_allowed(const cudnn::Performance& found, cudnn::DataType type, bool deterministic) {
  const bool rounds_factors = found.math == Math::kTensorCores || found.math == Math::kTensorCoresAllowConversion;
  return found.status == 0 && (found.deterministic != 0 || !deterministic)
         && !(rounds_factors && type == cudnn::DataType::kFloat);
}

// Puts an algorithm into the plan; returns whether cuDNN accepts it with a workspace of at most `max_workspace` bytes.
bool try_algorithm(cudnn::Handle handle, const cudnn::Pass& functions, cudnn::DataType type,
                   const cudnn::Performance& found, size_t max_workspace, Plan* plan) {
  // The math type belongs to the algorithm; the default for float32 would be TF32.
  const Math math = type == cudnn::DataType::kFloat ? Math::kFusedMultiplyAdd : found.math;
  GT_CUDNN_CHECK(set_math(plan->convolution, math));
  const auto& [first, second, result] = plan->operands;
  plan->algorithm = found.algorithm;
  const auto status = functions.workspace_bytes(handle, first, second, plan->convolution, result, found.algorithm,
                                                &plan->workspace_bytes);
  return status == 0 && plan->workspace_bytes <= max_workspace;
}

// Chooses the first algorithm of cuDNN's list, which is ordered by expected time, that is allowed, accepted by cuDNN
// and needs at most kMaxWorkspace; if there is none, the one with the smallest workspace.
bool choose_algorithm(cudnn::Handle handle, const cudnn::Pass& functions, cudnn::DataType type, bool deterministic,
                      Plan* plan) {
  cudnn::Performance list[kMaxAlgorithms];
  int found = 0;
  const auto& [first, second, result] = plan->operands;
  cudnn::check(
      functions.find_algorithms(handle, first, second, plan->convolution, result, kMaxAlgorithms, &found, list),
      "find_algorithms");
  auto* const end =
      std::remove_if(list, list + found, [=](const auto& one) { return !is_allowed(one, type, deterministic); });
  for (const auto* one = list; one != end; ++one) {
    if (try_algorithm(handle, functions, type, *one, kMaxWorkspace, plan)) return true;
  }
  std::stable_sort(list, end, [](const auto& one, const auto& other) { return one.memory < other.memory; });
  for (const auto* one = list; one != end; ++one) {
    if (try_algorithm(handle, functions, type, *one, std::numeric_limits<size_t>::max(), plan)) return true;
  }
  return false;
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
  Plan plan{operands_of(pass, descriptors), descriptors.convolution, 0, 0};
  if (choose_algorithm(handle, functions_of(pass), type, true, &plan)) return plan;
  CHECK(choose_algorithm(handle, functions_of(pass), type, false, &plan))
      << "cuDNN has no algorithm for this convolution: " << description(pass, shape);
  std::cerr << "graph-train: cuDNN has no deterministic algorithm for this convolution, results may differ in the last "
               "digits from run to run: "
            << description(pass, shape) << std::endl;
  return plan;
}

const Plan& cached_plan(int device, cudnn::Handle handle, ConvolutionPass pass, const ConvolutionShape& shape,
                        cudnn::DataType type) {
  static_assert(sizeof(ConvolutionShape) % sizeof(int64_t) == 0, "all members are int64_t");
  using Sizes = std::array<int64_t, sizeof(ConvolutionShape) / sizeof(int64_t)>;
  static auto* plans = new std::map<std::tuple<int, ConvolutionPass, cudnn::DataType, Sizes>, Plan>;
  static std::mutex mutex;
  Sizes sizes;
  std::memcpy(sizes.data(), &shape, sizeof(shape));
  const std::tuple key{device, pass, type, sizes};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = plans->find(key);
  if (known != plans->end()) return known->second;
  return plans->emplace(key, make_plan(handle, pass, shape, type)).first->second;
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
  const Plan& plan = cached_plan(queue.device, handle, pass, shape, type);
  const auto& [first, second, result] = plan.operands;
  void* data[] = {x, weights, y};
  if (pass == ConvolutionPass::kDataGradient) std::rotate(data, data + 1, data + 3);
  if (pass == ConvolutionPass::kFilterGradient) std::swap(data[1], data[2]);
  void* const workspace = plan.workspace_bytes == 0 ? nullptr : cuda::workspace(queue, plan.workspace_bytes);
  const float alpha = 1, beta = 0;
  const char* names[] = {"cudnn_forward", "cudnn_data_gradient", "cudnn_filter_gradient"};
  const char* name = names[static_cast<int>(pass)];
  cudnn::check(functions_of(pass).run(handle, &alpha, first, data[0], second, data[1], plan.convolution, plan.algorithm,
                                      workspace, plan.workspace_bytes, &beta, result, data[2]),
               name);
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
