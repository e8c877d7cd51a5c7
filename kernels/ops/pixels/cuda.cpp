// Conversion of images to the first activation, on CUDA.
#include "native/attributes.h"
#include "native/cuda/launch.h"
#include "ops/pixels/pixels.h"

namespace graph_train {

namespace {

class PixelsCudaKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const oneflow::ShapeView& shape = view_of(ctx, "images");
    const PixelArgs args{data_of<void>(ctx, "images"), result_of<void>(ctx), shape.At(0), shape.Count(2)};
    const int64_t threads = args.number * ((args.area + kPixelsPerThread - 1) / kPixelsPerThread);
    if (threads == 0) return;
    const char* kernel = type_of(ctx, "images") == oneflow::DataType::kUInt8 ? "pixels" : "float_pixels";
    cuda::launch(cuda::queue_of(ctx), cuda::name_of(kernel, type_of(ctx, "out")),
                 cuda::blocks_for(threads, kPixelThreads), kPixelThreads, args);
  }
};

GT_CUDA_KERNEL("graph_train_pixels", PixelsCudaKernel, GT_IS_ACTIVATION("out"));

}  // namespace

}  // namespace graph_train
