// Space-to-depth, zero padding and their inverses on the CPU, parallel over rows.
#include <algorithm>

#include "native/number_types.h"
#include "ops/rearrange/call.h"

namespace graph_train {

namespace {

template<typename T, bool to_depth>
class DepthKernelOf final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const DepthArgs args = depth_args(ctx, to_depth);
    const auto* in = static_cast<const T*>(args.in);
    auto* out = static_cast<T*>(args.out);
    parallel_for(args.rows, grain_of(args.columns * 4 * args.channels), [&](int64_t begin, int64_t end) {
      for (int64_t patch = begin * args.columns * 4; patch < end * args.columns * 4; ++patch) {
        const int64_t pixel = patch / 4, row = pixel / args.columns;
        const int64_t plain = pixel_of_patch(args, row, pixel - row * args.columns, patch % 4);
        const T* from = in + (to_depth ? plain : patch) * args.channels;
        T* to = out + (to_depth ? patch : plain) * args.channels;
        for (int64_t c = 0; c < args.channels; ++c) to[c] = from[c];
      }
    });
  }
};

template<typename T>
class ZeroPadKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const PadArgs args = pad_args(ctx, true);
    const int64_t own = args.columns * args.channels, width = args.large_columns * args.channels;
    parallel_for(args.images * args.large_rows, grain_of(width), [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        const int64_t image = line / args.large_rows, row = line % args.large_rows - args.top;
        T* to = static_cast<T*>(args.out) + line * width;
        if (row < 0 || row >= args.rows) {
          std::fill_n(to, width, T{});
          continue;
        }
        const T* from = static_cast<const T*>(args.in) + (image * args.rows + row) * own;
        T* const inside = std::fill_n(to, args.left * args.channels, T{});
        std::fill(std::copy_n(from, own, inside), to + width, T{});
      }
    });
  }
};

template<typename T>
class CropKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const PadArgs args = pad_args(ctx, false);
    const int64_t own = args.columns * args.channels;
    parallel_for(args.images * args.rows, grain_of(own), [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        const int64_t image = line / args.rows, row = line % args.rows + args.top;
        const int64_t first = ((image * args.large_rows + row) * args.large_columns + args.left) * args.channels;
        std::copy_n(static_cast<const T*>(args.in) + first, own, static_cast<T*>(args.out) + line * own);
      }
    });
  }
};

template<typename T>
using SpaceToDepthKernel = DepthKernelOf<T, true>;
template<typename T>
using DepthToSpaceKernel = DepthKernelOf<T, false>;

GT_CPU_ACTIVATION_KERNEL("graph_train_space_to_depth", SpaceToDepthKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_depth_to_space", DepthToSpaceKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_zero_pad", ZeroPadKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_crop", CropKernel, GT_ALWAYS);

}  // namespace

}  // namespace graph_train
