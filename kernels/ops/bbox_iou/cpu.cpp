// Overlap of matched box pairs: one kernel for the values, one for the gradients of both boxes.
// Reference and contract: kernels/ops/bbox_iou/function.py.
#include "native/attributes.h"
#include "ops/bbox_iou/bbox_iou.h"

namespace graph_train {
namespace {

// A pair costs about this many nanoseconds; less than 20 microseconds of work is not worth a second thread.
constexpr int64_t kPairsPerThread = 4096;

// Boxes are stored one behind the other; the arithmetic runs on a block of them that is turned to one array per side.
// Always on a whole block: the compiler then vectorises without a remainder, and what lies behind a short block is
// computed in vain and not stored.
constexpr int64_t kBlock = 64;

template<typename T>
struct SidesBlock {
  T left[kBlock], top[kBlock], right[kBlock], bottom[kBlock], width[kBlock], height[kBlock];

  GT_INLINE Sides<T> get(int64_t i) const { return {left[i], top[i], right[i], bottom[i], width[i], height[i]}; }
  GT_INLINE void set(int64_t i, const Sides<T>& sides) {
    left[i] = sides.left;
    top[i] = sides.top;
    right[i] = sides.right;
    bottom[i] = sides.bottom;
    width[i] = sides.width;
    height[i] = sides.height;
  }
};

template<typename T>
struct Operands {
  const T* box1;
  const T* box2;
  const T* grad;  // of the overlap; unused for values
  T* out1;        // overlap, or gradient of box1
  T* out2;        // gradient of box2; null where it is not wanted
  T eps;
  bool centre_form;
};

template<typename T>
GT_INLINE void load_sides(const T* boxes, int64_t count, bool centre_form, T eps, SidesBlock<T>& sides) {
  for (int64_t i = 0; i < count; ++i) {
    const Box<T> box{boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
    sides.set(i, sides_of(box, centre_form, eps));
  }
}

template<typename T>
GT_INLINE void store_gradient(const SidesBlock<T>& sides, int64_t count, bool centre_form, T* boxes) {
  for (int64_t i = 0; i < count; ++i) {
    const Box<T> box = stored_gradient(sides.get(i), centre_form);
    boxes[4 * i] = box.first;
    boxes[4 * i + 1] = box.second;
    boxes[4 * i + 2] = box.third;
    boxes[4 * i + 3] = box.fourth;
  }
}

template<typename T, IouKind kind>
GT_INLINE void values(const Operands<T>& to, int64_t begin, int64_t end) {
  SidesBlock<T> a{}, b{};
  T overlap[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    load_sides(to.box1 + 4 * first, count, to.centre_form, to.eps, a);
    load_sides(to.box2 + 4 * first, count, to.centre_form, to.eps, b);
    for (int64_t i = 0; i < kBlock; ++i) overlap[i] = pair_overlap<T, kind>(a.get(i), b.get(i), to.eps);
    std::copy_n(overlap, count, to.out1 + first);
  }
}

template<typename T, IouKind kind>
GT_INLINE void gradients(const Operands<T>& to, int64_t begin, int64_t end) {
  SidesBlock<T> a{}, b{}, grad_a, grad_b;
  T grad[kBlock] = {};
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    load_sides(to.box1 + 4 * first, count, to.centre_form, to.eps, a);
    load_sides(to.box2 + 4 * first, count, to.centre_form, to.eps, b);
    std::copy_n(to.grad + first, count, grad);
    for (int64_t i = 0; i < kBlock; ++i) {
      Sides<T> grad1, grad2;
      pair_gradient<T, kind>(a.get(i), b.get(i), to.eps, grad[i], &grad1, &grad2);
      grad_a.set(i, grad1);
      grad_b.set(i, grad2);
    }
    store_gradient(grad_a, count, to.centre_form, to.out1 + 4 * first);
    if (to.out2 != nullptr) store_gradient(grad_b, count, to.centre_form, to.out2 + 4 * first);
  }
}

template<typename T>
GT_INLINE void values_of_kind(IouKind kind, const Operands<T>& operands, int64_t begin, int64_t end) {
  switch (kind) {
    case IouKind::kIou: return values<T, IouKind::kIou>(operands, begin, end);
    case IouKind::kGiou: return values<T, IouKind::kGiou>(operands, begin, end);
    case IouKind::kDiou: return values<T, IouKind::kDiou>(operands, begin, end);
    case IouKind::kCiou: return values<T, IouKind::kCiou>(operands, begin, end);
  }
}

template<typename T>
GT_INLINE void gradients_of_kind(IouKind kind, const Operands<T>& operands, int64_t begin, int64_t end) {
  switch (kind) {
    case IouKind::kIou: return gradients<T, IouKind::kIou>(operands, begin, end);
    case IouKind::kGiou: return gradients<T, IouKind::kGiou>(operands, begin, end);
    case IouKind::kDiou: return gradients<T, IouKind::kDiou>(operands, begin, end);
    case IouKind::kCiou: return gradients<T, IouKind::kCiou>(operands, begin, end);
  }
}

// Training runs in float: compiled once per instruction set. Double serves the tests of gradients.
GT_VECTOR void values_range(IouKind kind, const Operands<float>& operands, int64_t begin, int64_t end) {
  values_of_kind(kind, operands, begin, end);
}
GT_VECTOR void gradients_range(IouKind kind, const Operands<float>& operands, int64_t begin, int64_t end) {
  gradients_of_kind(kind, operands, begin, end);
}
void values_range(IouKind kind, const Operands<double>& operands, int64_t begin, int64_t end) {
  values_of_kind(kind, operands, begin, end);
}
void gradients_range(IouKind kind, const Operands<double>& operands, int64_t begin, int64_t end) {
  gradients_of_kind(kind, operands, begin, end);
}

template<typename T>
class BoxIouKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    auto* out = ctx->Tensor4ArgNameAndIndex("out", 0);
    const Operands<T> operands{ctx->Tensor4ArgNameAndIndex("box1", 0)->dptr<T>(),
                               ctx->Tensor4ArgNameAndIndex("box2", 0)->dptr<T>(),
                               nullptr,
                               out->mut_dptr<T>(),
                               nullptr,
                               static_cast<T>(floats_of(ctx).at(0)),
                               integers_of(ctx).at(1) != 0};
    const auto kind = static_cast<IouKind>(integers_of(ctx).at(0));
    parallel_for(out->shape_view().elem_cnt(), kPairsPerThread,
                 [&](int64_t begin, int64_t end) { values_range(kind, operands, begin, end); });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

template<typename T>
class BoxIouGradKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* grad = ctx->Tensor4ArgNameAndIndex("grad", 0);
    const int64_t pairs = grad->shape_view().elem_cnt();
    auto* both = ctx->Tensor4ArgNameAndIndex("out", 0);
    T* out = both->mut_dptr<T>();
    const Operands<T> operands{ctx->Tensor4ArgNameAndIndex("box1", 0)->dptr<T>(),
                               ctx->Tensor4ArgNameAndIndex("box2", 0)->dptr<T>(),
                               grad->dptr<T>(),
                               out,
                               both->shape_view().At(0) == 2 ? out + 4 * pairs : nullptr,
                               static_cast<T>(floats_of(ctx).at(0)),
                               integers_of(ctx).at(1) != 0};
    const auto kind = static_cast<IouKind>(integers_of(ctx).at(0));
    parallel_for(pairs, kPairsPerThread,
                 [&](int64_t begin, int64_t end) { gradients_range(kind, operands, begin, end); });
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

GT_CPU_KERNEL("graph_train_bbox_iou", BoxIouKernel<float>, GT_IS_FLOAT("box1"));
GT_CPU_KERNEL("graph_train_bbox_iou", BoxIouKernel<double>, GT_IS_DOUBLE("box1"));
GT_CPU_KERNEL("graph_train_bbox_iou_grad", BoxIouGradKernel<float>, GT_IS_FLOAT("box1"));
GT_CPU_KERNEL("graph_train_bbox_iou_grad", BoxIouGradKernel<double>, GT_IS_DOUBLE("box1"));

}  // namespace
}  // namespace graph_train
