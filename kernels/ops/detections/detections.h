// From a head's raw maps to detections: arithmetic shared by CPU and CUDA kernels. References: `Detect.decode`
// of models/head.py, graph_train/detection/nms.py and suppression.py.
//
// Files that include this must be compiled without fused multiply-add, because the last bit of an overlap at the
// threshold decides.
#pragma once

#include "native/exponential.h"
#include "ops/bbox_iou/bbox_iou.h"

namespace graph_train {

constexpr int kMaxDecodedLevels = 8;
constexpr int kDetectionValues = 6;  // x1, y1, x2, y2, confidence, class

struct DecodedLevel {
  const float* map;            // (images, rows, columns, anchors * outputs)
  const float* anchors_cells;  // (anchors, 2)
  int64_t rows, columns;
  int64_t first;  // row of predictions
  float stride;
};

// All levels of a batch.
struct DecodeArgs {
  DecodedLevel levels[kMaxDecodedLevels];
  float* out;  // (images, predictions, outputs)
  int64_t images, predictions, anchors, outputs;
  int32_t level_count;
};

// One value of the decoded predictions: column `place` of the row `prediction` of an image.
GT_HOST_DEVICE float decoded_value(const DecodeArgs& args, const DecodedLevel& level, int64_t image, int64_t prediction,
                                   int64_t place) {
  const int64_t column = prediction % level.columns, row = prediction / level.columns % level.rows;
  const int64_t anchor = prediction / level.columns / level.rows;
  const int64_t cell = (image * level.rows + row) * level.columns + column;
  const float score = sigmoid_of(level.map[(cell * args.anchors + anchor) * args.outputs + place]);
  if (place >= 4) return score;
  if (place < 2) return (score * 2.0f + (static_cast<float>(place == 0 ? column : row) - 0.5f)) * level.stride;
  return score * 2.0f * (score * 2.0f) * (level.anchors_cells[2 * anchor + place - 2] * level.stride);
}

struct SuppressionSettings {
  float confidence, iou, class_shift;
  int32_t classes;      // of the predictions
  int32_t multi_label;  // a box is a candidate for every class above the confidence, not only its best one
  int32_t agnostic;     // boxes of different classes suppress one another
  int32_t max_candidates, max_detections;
  const uint8_t* wanted;  // (classes,): 1 for those that count; null: all
  GT_HOST_DEVICE bool counts(int32_t category) const { return wanted == nullptr || wanted[category] != 0; }
};

// A candidate is a box with a class. Keys ascend in the order in which candidates are visited: by decreasing
// confidence, equal ones in the order of boxes and classes; NaN comes last.
GT_HOST_DEVICE uint64_t candidate_key(float confidence, int64_t box, int32_t category, int32_t classes) {
  const uint32_t rank = confidence == confidence ? ~bits_of(confidence) : ~0u;
  return static_cast<uint64_t>(rank) << 32 | static_cast<uint64_t>(box * classes + category);
}

struct Candidate {
  int64_t box;
  int32_t category;
};

GT_HOST_DEVICE Candidate candidate_of(uint64_t key, int32_t classes) {
  const auto number = static_cast<int64_t>(key & 0xffffffffu);
  return {number / classes, static_cast<int32_t>(number % classes)};
}

// Left, top, right, bottom of a decoded prediction.
GT_HOST_DEVICE Box<float> corners_of(const float* prediction) {
  const float half_width = prediction[2] / 2.0f, half_height = prediction[3] / 2.0f;
  return {prediction[0] - half_width, prediction[1] - half_height, prediction[0] + half_width,
          prediction[1] + half_height};
}

// Corners for the comparison, shifted by class unless the suppression is agnostic.
GT_HOST_DEVICE Box<float> nms_corners(const SuppressionSettings& settings, const float* prediction, int32_t category) {
  const Box<float> box = corners_of(prediction);
  if (settings.agnostic != 0) return box;
  const float shift = settings.class_shift * static_cast<float>(category);
  return {box.first + shift, box.second + shift, box.third + shift, box.fourth + shift};
}

// Whether a kept box suppresses another one. 0 / 0, of boxes without area, is not above any threshold.
GT_HOST_DEVICE bool suppresses(const Box<float>& kept, const Box<float>& other, float threshold) {
  const float width = smaller(kept.third, other.third) - larger(kept.first, other.first);
  const float height = smaller(kept.fourth, other.fourth) - larger(kept.second, other.second);
  const float overlap = larger(width, 0.0f) * larger(height, 0.0f);
  const float union_area = (kept.third - kept.first) * (kept.fourth - kept.second)
                           + (other.third - other.first) * (other.fourth - other.second) - overlap;
  return overlap / union_area > threshold;
}

GT_HOST_DEVICE void store_detection(const float* prediction, int32_t category, float* detection) {
  const Box<float> box = corners_of(prediction);
  detection[0] = box.first;
  detection[1] = box.second;
  detection[2] = box.third;
  detection[3] = box.fourth;
  detection[4] = prediction[5 + category] * prediction[4];
  detection[5] = static_cast<float>(category);
}

}  // namespace graph_train
