// Conversion of images to the first activation, on the CPU.
#include <array>

#include "native/attributes.h"
#include "native/number_types.h"
#include "ops/pixels/pixels.h"

namespace graph_train {

namespace {

// Converts each value and moves the channels last.
template<typename Pixel, typename T, typename Convert>
void convert_planes(user_op::KernelComputeContext* ctx, const Convert& convert) {
  const oneflow::ShapeView& shape = view_of(ctx, "images");
  const int64_t area = shape.Count(2);
  const auto* images = data_of<Pixel>(ctx, "images");
  T* out = result_of<T>(ctx);
  parallel_for(shape.At(0) * area, grain_of(1), [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end;) {
      const int64_t image = pixel / area;
      const Pixel* planes = images + (image * 3) * area - image * area;  // indexed by the pixel's number in all
      for (const int64_t last = std::min(end, (image + 1) * area); pixel < last; ++pixel) {
        for (int64_t c = 0; c < 3; ++c) out[pixel * 3 + c] = convert(planes[c * area + pixel]);
      }
    }
  });
}

template<typename T>
class PixelsKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    if (type_of(ctx, "images") == oneflow::DataType::kFloat) {
      return convert_planes<float, T>(ctx, [](float value) { return from_float<T>(value); });
    }
    std::array<T, 256> values;
    for (int i = 0; i < 256; ++i) values[i] = from_float<T>(static_cast<float>(i) / kMaxPixel);
    convert_planes<uint8_t, T>(ctx, [&](uint8_t value) { return values[value]; });
  }
};

GT_CPU_KERNEL("graph_train_pixels", PixelsKernel<float>, GT_IS_FLOAT("out"));
GT_CPU_KERNEL("graph_train_pixels", PixelsKernel<Bfloat16>, GT_IS_BFLOAT16("out"));

}  // namespace

}  // namespace graph_train
