// Overlap of matched box pairs: one kernel for the values, one for the gradients of both boxes.
// Reference and contract: kernels/ops/bbox_iou/function.py.
#include "native/attributes.h"
#include "ops/bbox_iou/bbox_iou.h"

namespace graph_train {
namespace {

// About 20 microseconds of work; less is not worth a second thread.
constexpr int64_t kPairsPerThread = 4096;

// The arithmetic runs on blocks of boxes that are transposed to one array per side. A block is always computed
// completely, so that the compiler vectorises without a remainder loop; results beyond the end of the last block are
// not stored.
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
  T* out2;        // gradient of box2; null if not needed
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
GT_INLINE void values(const Operands<T>& args, int64_t begin, int64_t end) {
  SidesBlock<T> a{}, b{};
  T overlap[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    load_sides(args.box1 + 4 * first, count, args.centre_form, args.eps, a);
    load_sides(args.box2 + 4 * first, count, args.centre_form, args.eps, b);
    for (int64_t i = 0; i < kBlock; ++i) overlap[i] = pair_overlap<T, kind>(a.get(i), b.get(i), args.eps);
    std::copy_n(overlap, count, args.out1 + first);
  }
}

template<typename T, IouKind kind>
GT_INLINE void gradients(const Operands<T>& args, int64_t begin, int64_t end) {
  SidesBlock<T> a{}, b{}, grad_a, grad_b;
  T grad[kBlock] = {};
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    load_sides(args.box1 + 4 * first, count, args.centre_form, args.eps, a);
    load_sides(args.box2 + 4 * first, count, args.centre_form, args.eps, b);
    std::copy_n(args.grad + first, count, grad);
    for (int64_t i = 0; i < kBlock; ++i) {
      Sides<T> grad1, grad2;
      pair_gradient<T, kind>(a.get(i), b.get(i), args.eps, grad[i], &grad1, &grad2);
      grad_a.set(i, grad1);
      grad_b.set(i, grad2);
    }
    store_gradient(grad_a, count, args.centre_form, args.out1 + 4 * first);
    if (args.out2 != nullptr) store_gradient(grad_b, count, args.centre_form, args.out2 + 4 * first);
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

// Training uses float, which is compiled once per instruction set; double is for gradient tests.
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

IouKind kind_of(user_op::KernelComputeContext* ctx) { return static_cast<IouKind>(integers_of(ctx).at(0)); }

// The operands common to values and gradients.
template<typename T>
Operands<T> common_operands(user_op::KernelComputeContext* ctx) {
  return {data_of<T>(ctx, "box1"),
          data_of<T>(ctx, "box2"),
          nullptr,
          result_of<T>(ctx),
          nullptr,
          static_cast<T>(floats_of(ctx).at(0)),
          integers_of(ctx).at(1) != 0};
}

template<typename T>
class BoxIouKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto operands = common_operands<T>(ctx);
    const IouKind kind = kind_of(ctx);
    parallel_for(view_of(ctx, "out").elem_cnt(), kPairsPerThread,
                 [&](int64_t begin, int64_t end) { values_range(kind, operands, begin, end); });
  }
};

template<typename T>
class BoxIouGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const int64_t pairs = view_of(ctx, "grad").elem_cnt();
    auto operands = common_operands<T>(ctx);
    operands.grad = data_of<T>(ctx, "grad");
    if (view_of(ctx, "out").At(0) == 2) operands.out2 = operands.out1 + 4 * pairs;
    const IouKind kind = kind_of(ctx);
    parallel_for(pairs, kPairsPerThread,
                 [&](int64_t begin, int64_t end) { gradients_range(kind, operands, begin, end); });
  }
};

GT_CPU_KERNEL("graph_train_bbox_iou", BoxIouKernel<float>, GT_IS_FLOAT("box1"));
GT_CPU_KERNEL("graph_train_bbox_iou", BoxIouKernel<double>, GT_IS_DOUBLE("box1"));
GT_CPU_KERNEL("graph_train_bbox_iou_grad", BoxIouGradKernel<float>, GT_IS_FLOAT("box1"));
GT_CPU_KERNEL("graph_train_bbox_iou_grad", BoxIouGradKernel<double>, GT_IS_DOUBLE("box1"));

}  // namespace
}  // namespace graph_train
