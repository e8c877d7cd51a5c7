// Arithmetic of the detection loss, common to the CPU and CUDA kernels: matching of labels with cells, losses and
// derivatives of single values and boxes. Contract: kernels/ops/detection_loss/function.py; composed reference:
// models/loss.py and models/targets.py.
//
// Files that include this must be compiled without fused multiply-add: which cell a label belongs to is decided by
// comparing rounded numbers, and a fused multiply-add would move labels that lie exactly on a border.
#pragma once

#include "native/exponential.h"
#include "ops/bbox_iou/bbox_iou.h"

namespace graph_train {

// The label's own cell, then left, up, right, down.
constexpr int kNeighbours = 5;
constexpr float kIouEps = 1e-7f;
constexpr int kMaxLevels = 5;
constexpr int kLabelValues = 5;  // class, centre x, centre y, width, height

// The settings before the anchors; LossSetting of function.py.
struct LossSettings {
  float box_gain, objectness_gain, class_gain, class_positive_weight, objectness_positive_weight, anchor_t;
  float positive_target, negative_target, gr, best_iou_wins, focal_gamma, focal_alpha;
};
constexpr int kLossSettings = sizeof(LossSettings) / sizeof(float);

// One level's map: (images, rows, columns, anchors * (5 + classes)).
struct LossLevel {
  const float* map;
  float* gradient;
  const float* anchor_sides;  // (anchors, 2) in cells
  int64_t rows, columns, anchors, channels;
  GT_HOST_DEVICE int64_t cells() const { return rows * columns * anchors; }  // of one image
  GT_HOST_DEVICE int64_t classes() const { return channels - 5; }
};

// A label in cells of a level.
struct PlacedLabel {
  float x, y, width, height;
};

// A label and a prediction that is matched with it; the box in cells, its centre relative to the cell's corner.
struct Match {
  int64_t cell;  // (row * columns + column) * anchors + anchor, of one image
  int32_t anchor;
  int32_t class_index;
  Box<float> target;
};

GT_HOST_DEVICE bool is_label(const float* label) { return label[0] >= 0; }

GT_HOST_DEVICE PlacedLabel place_label(const LossLevel& level, const float* label) {
  const auto width = static_cast<float>(level.columns), height = static_cast<float>(level.rows);
  return {label[1] * width, label[2] * height, label[3] * width, label[4] * height};
}

// Whether both sides of a label are less than `limit` times longer or shorter than the anchor's.
GT_HOST_DEVICE bool fits_anchor(const PlacedLabel& label, const float* anchor, float limit) {
  const float ratio_x = label.width / anchor[0], ratio_y = label.height / anchor[1];
  const float worst_x = larger(ratio_x, 1.0f / ratio_x), worst_y = larger(ratio_y, 1.0f / ratio_y);
  return larger(worst_x, worst_y) < limit;
}

// Whether a centre at this distance from a side of the image is less than half a cell from the border of its cell
// towards that side, and the border is not the side itself.
GT_HOST_DEVICE bool is_near(float distance) { return distance - floorf(distance) < 0.5f && distance > 1.0f; }

GT_HOST_DEVICE bool reaches_neighbour(const LossLevel& level, const PlacedLabel& label, int neighbour) {
  switch (neighbour) {
    case 0: return true;
    case 1: return is_near(label.x);
    case 2: return is_near(label.y);
    case 3: return is_near(static_cast<float>(level.columns) - label.x);
    default: return is_near(static_cast<float>(level.rows) - label.y);
  }
}

GT_HOST_DEVICE float clamped_floor(float value, int64_t count) {
  return smaller(larger(floorf(value), 0.0f), static_cast<float>(count) - 1.0f);
}

// The match of a label that fits the anchor with a neighbouring cell.
GT_HOST_DEVICE Match match_of(const LossLevel& level, const PlacedLabel& label, float class_index, int neighbour,
                              int anchor) {
  const float shift_x = neighbour == 1 ? 0.5f : (neighbour == 3 ? -0.5f : 0.0f);
  const float shift_y = neighbour == 2 ? 0.5f : (neighbour == 4 ? -0.5f : 0.0f);
  const float column = clamped_floor(label.x - shift_x, level.columns);
  const float row = clamped_floor(label.y - shift_y, level.rows);
  const int64_t corner = static_cast<int64_t>(row) * level.columns + static_cast<int64_t>(column);
  return {corner * level.anchors + anchor,
          anchor,
          static_cast<int32_t>(class_index),
          {label.x - column, label.y - row, label.width, label.height}};
}

// Number of predictions of a level that are matched with a label.
GT_HOST_DEVICE int count_matches(const LossLevel& level, const float* label, float limit) {
  if (!is_label(label)) return 0;
  const PlacedLabel placed = place_label(level, label);
  int anchors = 0, neighbours = 0;
  for (int64_t anchor = 0; anchor < level.anchors; ++anchor) {
    anchors += fits_anchor(placed, level.anchor_sides + 2 * anchor, limit);
  }
  for (int neighbour = 0; neighbour < kNeighbours; ++neighbour)
    neighbours += reaches_neighbour(level, placed, neighbour);
  return anchors * neighbours;
}

// A loss and its derivative by the logit.
struct ElementLoss {
  float loss, gradient;
};

// Binary cross-entropy of a logit.
GT_HOST_DEVICE ElementLoss cross_entropy_element(float logit, float target, float positive_weight) {
  const float power = exp_of_negative(logit < 0 ? logit : -logit);
  const float weight = 1.0f + (positive_weight - 1.0f) * target;
  const float minus_log_sigmoid = log_of_one_plus(power) + (logit < 0 ? -logit : 0.0f);
  const float one_minus_sigmoid = (logit < 0 ? 1.0f : power) / (1.0f + power);
  return {(1.0f - target) * logit + weight * minus_log_sigmoid, (1.0f - target) - weight * one_minus_sigmoid};
}

// The same times the focal loss's weight of the class and (1 - p_t)^gamma, gamma > 0. Source: arXiv:1708.02002, eq. 5,
// with p_t interpolated for targets between 0 and 1 as in YOLOv5.
GT_HOST_DEVICE ElementLoss focal_element(float logit, float target, float positive_weight, float gamma, float alpha) {
  const ElementLoss plain = cross_entropy_element(logit, target, positive_weight);
  const float power = exp_of_negative(logit < 0 ? logit : -logit);
  const float sigmoid = (logit < 0 ? power : 1.0f) / (1.0f + power);
  const float one_minus_sigmoid = (logit < 0 ? 1.0f : power) / (1.0f + power);
  const float distance = target * one_minus_sigmoid + (1.0f - target) * sigmoid;  // 1 - p_t
  // Rounding may exceed 1 by a bit. Where p_t rounds to 1, loss and derivative vanish; NaN is kept.
  const float bounded = distance < 1e-30f ? 1e-30f : (distance > 1.0f ? 1.0f : distance);
  const float modulation = exp_of_negative(gamma * log_of_positive(bounded));
  const float slope = (1.0f - 2.0f * target) * (sigmoid * one_minus_sigmoid);  // of the distance
  const float weight = target * alpha + (1.0f - target) * (1.0f - alpha);
  return {weight * modulation * plain.loss,
          weight * modulation * (plain.gradient + plain.loss * gamma * (slope / bounded))};
}

GT_HOST_DEVICE ElementLoss element_loss(const LossSettings& settings, float logit, float target,
                                        float positive_weight) {
  return settings.focal_gamma > 0
             ? focal_element(logit, target, positive_weight, settings.focal_gamma, settings.focal_alpha)
             : cross_entropy_element(logit, target, positive_weight);
}

// CIoU of one match and the gradient of its four logits.
struct BoxLoss {
  float iou;
  float gradient[4];
};

// `scale` is d total / d CIoU.
GT_HOST_DEVICE BoxLoss box_loss(const Match& match, const float* anchor, const float* logits, float scale) {
  const float scores[4] = {sigmoid_of(logits[0]), sigmoid_of(logits[1]), sigmoid_of(logits[2]), sigmoid_of(logits[3])};
  const float twice_w = scores[2] * 2.0f, twice_h = scores[3] * 2.0f;
  const Box<float> box{scores[0] * 2.0f - 0.5f, scores[1] * 2.0f - 0.5f, twice_w * twice_w * anchor[0],
                       twice_h * twice_h * anchor[1]};
  const Sides<float> predicted = sides_of(box, true, kIouEps), wanted = sides_of(match.target, true, kIouEps);
  Sides<float> grad_predicted, grad_wanted;
  pair_gradient<float, IouKind::kCiou>(predicted, wanted, kIouEps, scale, &grad_predicted, &grad_wanted);
  const Box<float> grad = stored_gradient(grad_predicted, true);
  return {pair_overlap<float, IouKind::kCiou>(predicted, wanted, kIouEps),
          {grad.first * 2.0f * scores[0] * (1.0f - scores[0]), grad.second * 2.0f * scores[1] * (1.0f - scores[1]),
           grad.third * anchor[0] * 2.0f * twice_w * twice_w * (1.0f - scores[2]),
           grad.fourth * anchor[1] * 2.0f * twice_h * twice_h * (1.0f - scores[3])}};
}

// The objectness target of a cell after one more match of it, in build order.
GT_HOST_DEVICE float objectness_target(const LossSettings& settings, float before, float iou) {
  const float quality = iou > 0 ? iou : 0.0f;  // NaN, from a diverged network, counts as 0, too
  const float target = settings.gr < 1 ? (1.0f - settings.gr) + settings.gr * quality : quality;
  return settings.best_iou_wins != 0 ? larger(before, target) : target;
}

// Factors of the derivatives of single elements. The total is the sum of the means, times the batch size.
struct LossScales {
  float box, classes, objectness;
};

// `matches` counts those of the whole batch, at least 1; `scale` is that of the loss.
GT_HOST_DEVICE LossScales loss_scales(const LossSettings& settings, const LossLevel& level, int64_t batch,
                                      double matches, float balance, float scale) {
  const auto classes = static_cast<double>(level.classes());
  const double factor = scale;
  return {static_cast<float>(-settings.box_gain * static_cast<double>(batch) * factor / matches),
          static_cast<float>(settings.class_gain * static_cast<double>(batch) * factor / (matches * classes)),
          static_cast<float>(settings.objectness_gain * balance * factor / static_cast<double>(level.cells()))};
}

// Sums over the elements of one level.
struct LossSums {
  double box, objectness, classes;
};

// Adds up the outputs: this rank's share of `total` and of `parts` (box, objectness, classes, then each level's mean).
struct LossOutputs {
  double box, objectness, classes;

  GT_HOST_DEVICE void add(const LossSettings& settings, const LossLevel& level, int64_t batch, double matches,
                          float balance, const LossSums& sums, float* mean) {
    box += settings.box_gain * sums.box / matches;
    classes += settings.class_gain * sums.classes / (matches * static_cast<double>(level.classes()));
    const double mean_objectness = sums.objectness / static_cast<double>(batch * level.cells());
    objectness += settings.objectness_gain * balance * mean_objectness;
    *mean = static_cast<float>(mean_objectness);
  }

  GT_HOST_DEVICE void store(int64_t batch, float* total, float* parts) const {
    *total = static_cast<float>((box + objectness + classes) * static_cast<double>(batch));
    parts[0] = static_cast<float>(box);
    parts[1] = static_cast<float>(objectness);
    parts[2] = static_cast<float>(classes);
  }
};

}  // namespace graph_train
