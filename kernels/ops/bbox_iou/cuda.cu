// Overlap of matched box pairs and its gradient: a thread for each pair.
#include "native/cuda/device.h"
#include "ops/bbox_iou/launch.h"

namespace graph_train {

namespace {

struct Pair {
  Sides<float> first, second;
};

GT_DEVICE Box<float> load_box(const float* boxes, int64_t pair) {
  float numbers[4];
  load_floats<4>(boxes + 4 * pair, 4, numbers);
  return {numbers[0], numbers[1], numbers[2], numbers[3]};
}

GT_DEVICE void store_box(float* boxes, int64_t pair, const Box<float>& box) {
  const float numbers[4] = {box.first, box.second, box.third, box.fourth};
  store_floats<4>(boxes + 4 * pair, 4, numbers);
}

GT_DEVICE Pair load_pair(const BoxIouArgs& args, int64_t pair) {
  const bool centre_form = args.centre_form != 0;
  return {sides_of(load_box(args.box1, pair), centre_form, args.eps),
          sides_of(load_box(args.box2, pair), centre_form, args.eps)};
}

GT_DEVICE int64_t pair_of_thread() { return static_cast<int64_t>(blockIdx.x) * kBoxThreads + threadIdx.x; }

template<IouKind kind>
GT_DEVICE void overlap(const BoxIouArgs& args, int64_t number) {
  const Pair pair = load_pair(args, number);
  args.out1[number] = pair_overlap<float, kind>(pair.first, pair.second, args.eps);
}

template<IouKind kind>
GT_DEVICE void gradient(const BoxIouArgs& args, int64_t number) {
  const Pair pair = load_pair(args, number);
  Sides<float> of_first, of_second;
  pair_gradient<float, kind>(pair.first, pair.second, args.eps, args.grad[number], &of_first, &of_second);
  store_box(args.out1, number, stored_gradient(of_first, args.centre_form != 0));
  if (args.out2 != nullptr) store_box(args.out2, number, stored_gradient(of_second, args.centre_form != 0));
}

}  // namespace

GT_KERNEL(bbox_iou, BoxIouArgs, kBoxThreads) {
  const int64_t number = pair_of_thread();
  if (number >= args.pairs) return;
  switch (args.kind) {
    case IouKind::kIou: return overlap<IouKind::kIou>(args, number);
    case IouKind::kGiou: return overlap<IouKind::kGiou>(args, number);
    case IouKind::kDiou: return overlap<IouKind::kDiou>(args, number);
    case IouKind::kCiou: return overlap<IouKind::kCiou>(args, number);
  }
}

GT_KERNEL(bbox_iou_grad, BoxIouArgs, kBoxThreads) {
  const int64_t number = pair_of_thread();
  if (number >= args.pairs) return;
  switch (args.kind) {
    case IouKind::kIou: return gradient<IouKind::kIou>(args, number);
    case IouKind::kGiou: return gradient<IouKind::kGiou>(args, number);
    case IouKind::kDiou: return gradient<IouKind::kDiou>(args, number);
    case IouKind::kCiou: return gradient<IouKind::kCiou>(args, number);
  }
}

}  // namespace graph_train
