// graph_train_pixels on the CPU.
#include "native/attributes.h"
#include "native/number_types.h"
#include "ops/pixels/pixels.h"

namespace graph_train {

namespace {

template<typename T>
class PixelsKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto shape = view_of(ctx, "images");
    const int64_t channels = shape.At(1), area = shape.At(2) * shape.At(3);
    // Each of the 256 values is divided once.
    T values[256];
    for (int value = 0; value < 256; ++value) values[value] = from_float<T>(static_cast<float>(value) / kPixelScale);
    const uint8_t* images = data_of<uint8_t>(ctx, "images");
    T* out = result_of<T>(ctx);
    parallel_for(shape.At(0) * area, 1 << 13, [&](int64_t begin, int64_t end) {
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const uint8_t* from = images + pixel / area * channels * area + pixel % area;
        for (int64_t c = 0; c < channels; ++c) out[pixel * channels + c] = values[from[c * area]];
      }
    });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

GT_CPU_KERNEL("graph_train_pixels", PixelsKernel<float>, GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_pixels", PixelsKernel<Bfloat16>, GT_IS_BFLOAT16("out"));

}  // namespace

}  // namespace graph_train
