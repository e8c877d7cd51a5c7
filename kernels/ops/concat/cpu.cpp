// OneFlow's ops concat and split_like for float and Bfloat16: parallel copies of parts of rows.
#include <cstring>
#include <vector>

#include "native/common.h"

namespace graph_train {

namespace {

// Elements of each tensor in one row of the joined tensor; a row spans all axes from the concatenated one on.
struct Pieces {
  int64_t rows = 0;
  int64_t joined = 0;
  std::vector<int64_t> widths, offsets;
};

template<typename Tensors>
Pieces pieces_of(const Tensors& tensors, int64_t axis) {
  Pieces p;
  for (const auto* tensor : tensors) {
    const int64_t width = tensor->shape_view().Count(axis);
    p.widths.push_back(width);
    p.offsets.push_back(p.joined);
    p.joined += width;
    if (width > 0) p.rows = tensor->shape_view().elem_cnt() / width;
  }
  return p;
}

// Calls copy(tensor, its first element, first element in the joined tensor, count) for every part.
template<typename Copy>
void for_pieces(const Pieces& p, const Copy& copy) {
  // A few long rows are cut, so that all threads work on each.
  const int64_t cuts = p.rows >= 4 * num_threads() ? 1 : num_threads();
  const int64_t grain = std::max<int64_t>(1, (1 << 14) * cuts / std::max<int64_t>(1, p.joined));
  parallel_for(p.rows * cuts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t row = job / cuts;
      const int64_t cut = job % cuts;
      for (size_t i = 0; i < p.widths.size(); ++i) {
        const int64_t from = p.widths[i] * cut / cuts;
        const int64_t to = p.widths[i] * (cut + 1) / cuts;
        // A tensor without elements may be a null pointer, which `memcpy` does not allow.
        if (to > from) copy(i, row * p.widths[i] + from, row * p.joined + p.offsets[i] + from, to - from);
      }
    }
  });
}

int64_t bytes_of(const user_op::Tensor* tensor) { return oneflow::GetSizeOfDataType(tensor->data_type()); }

int64_t axis_of(const user_op::KernelComputeContext* ctx) { return ctx->Attr<int64_t>("axis"); }

class ConcatKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    std::vector<const user_op::Tensor*> inputs;
    for (const auto& input : ctx->inputs()) inputs.push_back(ctx->Tensor4ArgNameAndIndex(input.first, input.second));
    const Pieces p = pieces_of(inputs, axis_of(ctx));
    std::vector<const char*> sources;
    for (const auto* input : inputs) sources.push_back(input->dptr<char>());
    auto* joined_tensor = ctx->Tensor4ArgNameAndIndex("out", 0);
    char* out = joined_tensor->mut_dptr<char>();
    const int64_t bytes = bytes_of(joined_tensor);
    for_pieces(p, [&](size_t i, int64_t own, int64_t joined, int64_t count) {
      std::memcpy(out + joined * bytes, sources[i] + own * bytes, count * bytes);
    });
  }
};

class SplitLikeKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    std::vector<const user_op::Tensor*> outputs;
    std::vector<char*> targets;
    for (const auto& output : ctx->outputs()) {
      auto* tensor = ctx->Tensor4ArgNameAndIndex(output.first, output.second);
      outputs.push_back(tensor);
      targets.push_back(tensor->mut_dptr<char>());
    }
    const Pieces p = pieces_of(outputs, axis_of(ctx));
    const auto* joined_tensor = ctx->Tensor4ArgNameAndIndex("in", 0);
    const char* in = joined_tensor->dptr<char>();
    const int64_t bytes = bytes_of(joined_tensor);
    for_pieces(p, [&](size_t i, int64_t own, int64_t joined, int64_t count) {
      std::memcpy(targets[i] + own * bytes, in + joined * bytes, count * bytes);
    });
  }
};

// Tensors whose shape is only known at run time stay with OneFlow's own kernels, which set it.
auto is_static(const std::string& arg) {
  return oneflow::hob::make_custom("static shapes", [arg](const user_op::KernelRegContext& ctx) {
    return !ctx.TensorDesc4ArgNameAndIndex(arg, 0)->is_dynamic();
  });
}

const auto kCopied = GT_IS_FLOAT("out") || GT_IS_BFLOAT16("out");
GT_CPU_KERNEL("concat", ConcatKernel, (kCopied && is_static("out")));
GT_CPU_KERNEL("split_like", SplitLikeKernel, (kCopied && is_static("in")));

}  // namespace

}  // namespace graph_train
