// Packing and unpacking convolution weights on the CPU.
#include "native/attributes.h"
#include "native/number_types.h"
#include "ops/weight_packing/weight_packing.h"

namespace graph_train {

namespace {

// out[index] = in[place(index, inputs, taps)]
template<typename From, typename To, typename Place>
void rearrange(const From* in, To* out, int64_t count, int64_t inputs, int64_t taps, const Place& place) {
  parallel_for(count, grain_of(1), [=](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      out[index] = from_float<To>(to_float(in[place(index, inputs, taps)]));
    }
  });
}

template<typename T>
class PackKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    for (const auto& [name, index] : ctx->inputs()) {
      const oneflow::ShapeView& shape = view_of(ctx, name, index);
      rearrange(data_of(ctx, name, index), result_of<T>(ctx, "out", index), shape.elem_cnt(), shape.At(1),
                shape.Count(2), unpacked_place);
    }
  }
};

template<typename T>
class UnpackKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    for (const auto& [name, index] : ctx->inputs()) {
      const oneflow::ShapeView& shape = view_of(ctx, name, index);
      rearrange(data_of<T>(ctx, name, index), result_of(ctx, "out", index), shape.elem_cnt(), shape.At(3),
                shape.Count(1, 3), packed_place);
    }
  }
};

GT_CPU_KERNEL("graph_train_pack_weights", PackKernel<float>, GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_pack_weights", PackKernel<Bfloat16>, GT_IS_BFLOAT16("out"));
GT_CPU_KERNEL("graph_train_unpack_weights", UnpackKernel<float>, GT_IS_FLOAT("gradient"));
GT_CPU_KERNEL("graph_train_unpack_weights", UnpackKernel<Bfloat16>, GT_IS_BFLOAT16("gradient"));

}  // namespace

}  // namespace graph_train
