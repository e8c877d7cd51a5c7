// Overlap of one pair of boxes and its derivative: shared by the CPU and the CUDA kernels.
//
// The order of operations is that of function.py (YOLOv5's, except for the derivative of the aspect ratio). Results
// still differ by rounding: the arc tangent is a polynomial, and cpu.cpp allows fused multiply-add. There are no
// branches, so that a loop over pairs can be vectorised.
#pragma once

#include "native/host_device.h"

namespace graph_train {

// In the order of IouKind in function.py.
enum class IouKind { kIou = 0, kGiou = 1, kDiou = 2, kCiou = 3 };

// A stored box: centre x, centre y, width, height, or left, top, right, bottom; or its gradient.
template<typename T>
struct Box {
  T first, second, third, fourth;
};

template<typename T>
struct Sides {
  T left, top, right, bottom, width, height;
};

// atan(x) / x = 1 + z * polynomial(z) with z = x^2 <= tan(pi/8)^2; Chebyshev interpolation, relative error 6e-10.
GT_HOST_DEVICE float arc_tangent_polynomial(float z) {
  return -3.3333306893e-01f
         + z * (1.9998183041e-01f + z * (-1.4239532670e-01f + z * (1.0569828806e-01f + z * -6.0263052277e-02f)));
}

// The same with relative error 1e-18.
GT_HOST_DEVICE double arc_tangent_polynomial(double z) {
  double sum = 1.475212546964416326e-02;
  sum = sum * z - 3.302199662206383089e-02;
  sum = sum * z + 4.483314552187308607e-02;
  sum = sum * z - 5.213200607684617162e-02;
  sum = sum * z + 5.876172267406972403e-02;
  sum = sum * z - 6.666135080190324278e-02;
  sum = sum * z + 7.692276157994220448e-02;
  sum = sum * z - 9.090907832129152689e-02;
  sum = sum * z + 1.111111107884942625e-01;
  sum = sum * z - 1.428571428522564518e-01;
  sum = sum * z + 1.999999999999625524e-01;
  return sum * z - 3.333333333333332332e-01;
}

// Arc tangent of any x, including infinity and NaN. The angle is first reduced by a quarter or an eighth of a turn.
template<typename T>
GT_HOST_DEVICE T arc_tangent(T x) {
  const T size = x < T(0) ? -x : x;
  const bool steep = size > T(2.41421356237309504880);   // tan(3 pi / 8)
  const bool middle = size > T(0.41421356237309504880);  // tan(pi / 8)
  const T numerator = steep ? T(-1) : (middle ? size - T(1) : size);
  const T denominator = steep ? size : (middle ? size + T(1) : T(1));
  const T turned = steep ? T(1.57079632679489661923) : (middle ? T(0.78539816339744830962) : T(0));
  const T reduced = numerator / denominator;
  const T square = reduced * reduced;
  const T angle = turned + (reduced + reduced * square * arc_tangent_polynomial(square));
  return x < T(0) ? -angle : angle;
}

template<typename T>
GT_HOST_DEVICE T smaller(T a, T b) {
  return b < a ? b : a;
}

template<typename T>
GT_HOST_DEVICE T larger(T a, T b) {
  return a < b ? b : a;
}

// Share of the gradient of min(a, b) that goes to a; a tie gives half to each side. For max(a, b) swap the arguments.
template<typename T>
GT_HOST_DEVICE T share_of_smaller(T a, T b) {
  return a < b ? T(1) : (a == b ? T(0.5) : T(0));
}

template<typename T>
GT_HOST_DEVICE Sides<T> sides_of(const Box<T>& box, bool centre_form, T eps) {
  if (!centre_form) {
    return {box.first, box.second, box.third, box.fourth, box.third - box.first, box.fourth - box.second + eps};
  }
  const T half_width = box.third * T(0.5), half_height = box.fourth * T(0.5);
  return {box.first - half_width,
          box.second - half_height,
          box.first + half_width,
          box.second + half_height,
          box.third,
          box.fourth};
}

constexpr double kAspectScale = 0.40528473456935108578;   // 4 / pi^2
constexpr double kSmallestSide = 1.1754943508222875e-38;  // the smallest float whose reciprocal is finite

// Derivative of `grad` times atan(width / height). Sides are divided by the longer one first: the quotient, or the
// square of a side, leaves the range of floats long before the derivative does (a height of 1e-20 with a width of 1).
template<typename T>
GT_HOST_DEVICE void aspect_gradient(T width, T height, T grad, T* grad_width, T* grad_height) {
  const T size_width = width < T(0) ? -width : width, size_height = height < T(0) ? -height : height;
  const T longer = larger(larger(size_width, size_height), T(kSmallestSide));
  const T relative_width = width / longer, relative_height = height / longer;
  const T square = larger(relative_width * relative_width + relative_height * relative_height, T(1));
  const T scale = grad / (longer * square);
  *grad_width = scale * relative_height;
  *grad_height = -scale * relative_width;
}

// Intermediate results that value and derivative share.
template<typename T>
struct PairTerms {
  T raw_width, raw_height, width, height, intersection, union_area, iou;  // of the overlap
  T hull_width, hull_height;
};

template<typename T>
GT_HOST_DEVICE PairTerms<T> pair_terms(const Sides<T>& a, const Sides<T>& b, T eps) {
  PairTerms<T> terms;
  terms.raw_width = smaller(a.right, b.right) - larger(a.left, b.left);
  terms.raw_height = smaller(a.bottom, b.bottom) - larger(a.top, b.top);
  terms.width = terms.raw_width < T(0) ? T(0) : terms.raw_width;
  terms.height = terms.raw_height < T(0) ? T(0) : terms.raw_height;
  terms.intersection = terms.width * terms.height;
  terms.union_area = a.width * a.height + b.width * b.height - terms.intersection + eps;
  terms.iou = terms.intersection / terms.union_area;
  terms.hull_width = larger(a.right, b.right) - smaller(a.left, b.left);
  terms.hull_height = larger(a.bottom, b.bottom) - smaller(a.top, b.top);
  return terms;
}

template<typename T, IouKind kind>
GT_HOST_DEVICE T pair_overlap(const Sides<T>& a, const Sides<T>& b, T eps) {
  const PairTerms<T> terms = pair_terms(a, b, eps);
  if (kind == IouKind::kIou) return terms.iou;
  if (kind == IouKind::kGiou) {
    const T hull_area = terms.hull_width * terms.hull_height + eps;
    return terms.iou - (hull_area - terms.union_area) / hull_area;
  }
  const T diagonal2 = terms.hull_width * terms.hull_width + terms.hull_height * terms.hull_height + eps;
  const T across = b.left + b.right - a.left - a.right, down = b.top + b.bottom - a.top - a.bottom;
  const T distance2 = (across * across + down * down) * T(0.25);
  if (kind == IouKind::kDiou) return terms.iou - distance2 / diagonal2;
  const T turn = arc_tangent(b.width / b.height) - arc_tangent(a.width / a.height);
  const T aspect = T(kAspectScale) * (turn * turn);
  const T alpha = aspect / (T(1) - terms.iou + aspect + eps);
  return terms.iou - (distance2 / diagonal2 + aspect * alpha);
}

// Gradient of the four sides, width and height of one box, to be converted to that of the stored box.
template<typename T>
GT_HOST_DEVICE Box<T> stored_gradient(const Sides<T>& g, bool centre_form) {
  if (centre_form) {
    return {g.left + g.right, g.top + g.bottom, (g.right - g.left) * T(0.5) + g.width,
            (g.bottom - g.top) * T(0.5) + g.height};
  }
  return {g.left - g.width, g.top - g.height, g.right + g.width, g.bottom + g.height};
}

// One axis of `pair_gradient`: low and high ends of both boxes, gradients of overlap length, hull length and of the
// doubled centre distance (b - a).
template<typename T>
GT_HOST_DEVICE void axis_gradient(T low_a, T high_a, T low_b, T high_b, T overlap, T hull, T distance, T* grad_low_a,
                                  T* grad_high_a, T* grad_low_b, T* grad_high_b) {
  const T high_share = share_of_smaller(high_a, high_b), low_share = share_of_smaller(low_a, low_b);
  *grad_high_a = overlap * high_share + hull * (T(1) - high_share) - distance;
  *grad_high_b = overlap * (T(1) - high_share) + hull * high_share + distance;
  *grad_low_a = -overlap * (T(1) - low_share) - hull * low_share - distance;
  *grad_low_b = -overlap * low_share - hull * (T(1) - low_share) + distance;
}

// Derivative of pair_overlap times `grad`; the aspect weight alpha of CIoU counts as a constant.
template<typename T, IouKind kind>
GT_HOST_DEVICE void pair_gradient(const Sides<T>& a, const Sides<T>& b, T eps, T grad, Sides<T>* grad1,
                                  Sides<T>* grad2) {
  const PairTerms<T> terms = pair_terms(a, b, eps);
  T grad_union = -grad * terms.iou / terms.union_area;
  T grad_hull_width = T(0), grad_hull_height = T(0), grad_across = T(0), grad_down = T(0);
  Sides<T> grad_a{}, grad_b{};
  T aspect_a_width = T(0), aspect_a_height = T(0), aspect_b_width = T(0), aspect_b_height = T(0);

  if (kind == IouKind::kGiou) {
    const T hull_area = terms.hull_width * terms.hull_height + eps;
    const T grad_hull_area = -grad * terms.union_area / hull_area / hull_area;
    grad_union += grad / hull_area;
    grad_hull_width = grad_hull_area * terms.hull_height;
    grad_hull_height = grad_hull_area * terms.hull_width;
  }
  if (kind == IouKind::kDiou || kind == IouKind::kCiou) {
    const T diagonal2 = terms.hull_width * terms.hull_width + terms.hull_height * terms.hull_height + eps;
    const T across = b.left + b.right - a.left - a.right, down = b.top + b.bottom - a.top - a.bottom;
    const T distance2 = (across * across + down * down) * T(0.25);
    const T grad_distance2 = -grad / diagonal2;
    const T grad_diagonal2 = -grad_distance2 * (distance2 / diagonal2);
    grad_hull_width = grad_diagonal2 * T(2) * terms.hull_width;
    grad_hull_height = grad_diagonal2 * T(2) * terms.hull_height;
    grad_across = grad_distance2 * T(0.5) * across;
    grad_down = grad_distance2 * T(0.5) * down;
  }
  if (kind == IouKind::kCiou) {
    const T turn = arc_tangent(b.width / b.height) - arc_tangent(a.width / a.height);
    const T aspect = T(kAspectScale) * (turn * turn);
    const T alpha = aspect / (T(1) - terms.iou + aspect + eps);
    const T grad_turn = -grad * alpha * (T(2 * kAspectScale) * turn);
    aspect_gradient(a.width, a.height, -grad_turn, &aspect_a_width, &aspect_a_height);
    aspect_gradient(b.width, b.height, grad_turn, &aspect_b_width, &aspect_b_height);
  }

  const T grad_intersection = grad / terms.union_area - grad_union;
  // A clamp passes the gradient at its bound.
  const T grad_overlap_width = terms.raw_width < T(0) ? T(0) : grad_intersection * terms.height;
  const T grad_overlap_height = terms.raw_height < T(0) ? T(0) : grad_intersection * terms.width;
  axis_gradient(a.left, a.right, b.left, b.right, grad_overlap_width, grad_hull_width, grad_across, &grad_a.left,
                &grad_a.right, &grad_b.left, &grad_b.right);
  axis_gradient(a.top, a.bottom, b.top, b.bottom, grad_overlap_height, grad_hull_height, grad_down, &grad_a.top,
                &grad_a.bottom, &grad_b.top, &grad_b.bottom);
  grad_a.width = grad_union * a.height + aspect_a_width;
  grad_a.height = grad_union * a.width + aspect_a_height;
  grad_b.width = grad_union * b.height + aspect_b_width;
  grad_b.height = grad_union * b.width + aspect_b_height;
  *grad1 = grad_a;
  *grad2 = grad_b;
}

}  // namespace graph_train
