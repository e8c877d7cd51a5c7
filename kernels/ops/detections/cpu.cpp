// Decoding, parallel over rows of predictions, and suppression, parallel over images, on the CPU.
#include <cstring>

#include "native/attributes.h"

// The last bit of an overlap at the threshold decides.
#include "native/exact_rounding.h"
#include "ops/detections/call.h"

namespace graph_train {
namespace {

constexpr int64_t kRowsPerThread = 512;

GT_VECTOR void decode_rows(const DecodeArgs& args, const DecodedLevel& level, int64_t image, int64_t begin,
                           int64_t end) {
  for (int64_t prediction = begin; prediction < end; ++prediction) {
    float* out = args.out + (image * args.predictions + level.first + prediction) * args.outputs;
    for (int64_t place = 0; place < args.outputs; ++place) {
      out[place] = decoded_value(args, level, image, prediction, place);
    }
  }
}

class DecodeKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const DecodeArgs args = decode_args(ctx);
    for (int index = 0; index < args.level_count; ++index) {
      const DecodedLevel& level = args.levels[index];
      const int64_t rows = args.anchors * level.rows * level.columns;
      parallel_for(args.images * rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end;) {
          const int64_t image = at / rows, last = std::min(end, (image + 1) * rows);
          decode_rows(args, level, image, at - image * rows, last - image * rows);
          at = last;
        }
      });
    }
  }
};

// The first class with the highest confidence; NaN counts as the highest, as in NumPy.
int32_t best_class(const float* row, int32_t classes) {
  int32_t best = 0;
  for (int32_t category = 0; category < classes; ++category) {
    const float confidence = row[5 + category] * row[4], highest = row[5 + best] * row[4];
    if (confidence != confidence) return category;
    if (confidence > highest) best = category;
  }
  return best;
}

std::vector<uint64_t> find_candidates(const SuppressionSettings& settings, const float* predictions, int64_t boxes) {
  std::vector<uint64_t> keys;
  const int32_t classes = settings.classes;
  const auto add = [&](const float* row, int64_t box, int32_t category) {
    if (settings.counts(category)) keys.push_back(candidate_key(row[5 + category] * row[4], box, category, classes));
  };
  for (int64_t box = 0; box < boxes; ++box) {
    const float* row = predictions + box * (5 + classes);
    if (!(row[4] > settings.confidence)) continue;
    bool above = false;
    for (int32_t category = 0; category < classes; ++category) {
      if (!(row[5 + category] * row[4] > settings.confidence)) continue;
      above = true;
      if (settings.multi_label != 0) add(row, box, category);
    }
    if (above && settings.multi_label == 0) add(row, box, best_class(row, classes));
  }
  return keys;
}

// Writes the detections of one image and returns their number.
int32_t suppress_image(const SuppressionSettings& settings, const float* predictions, int64_t boxes,
                       float* detections) {
  auto keys = find_candidates(settings, predictions, boxes);
  if (keys.size() > static_cast<size_t>(settings.max_candidates)) {
    std::nth_element(keys.begin(), keys.begin() + settings.max_candidates, keys.end());
    keys.resize(settings.max_candidates);
  }
  std::sort(keys.begin(), keys.end());
  std::vector<Box<float>> kept;
  for (const uint64_t key : keys) {
    if (kept.size() == static_cast<size_t>(settings.max_detections)) break;
    const Candidate candidate = candidate_of(key, settings.classes);
    const float* row = predictions + candidate.box * (5 + settings.classes);
    const Box<float> box = nms_corners(settings, row, candidate.category);
    const auto suppresses_box = [&](const Box<float>& other) { return suppresses(other, box, settings.iou); };
    if (std::any_of(kept.begin(), kept.end(), suppresses_box)) continue;
    store_detection(row, candidate.category, detections + kDetectionValues * kept.size());
    kept.push_back(box);
  }
  return static_cast<int32_t>(kept.size());
}

class SuppressKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    SuppressionSettings settings = suppression_settings(ctx);
    const auto wanted = wanted_classes(ctx, settings.classes);
    if (!wanted.empty()) settings.wanted = wanted.data();
    const auto shape = view_of(ctx, "predictions");
    const float* predictions = data_of(ctx, "predictions");
    float* detections = result_of(ctx, "out", 0);
    auto* counts = result_of<int32_t>(ctx, "out", 1);
    std::memset(detections, 0, sizeof(float) * view_of(ctx, "out", 0).elem_cnt());
    const int64_t own = settings.max_detections * kDetectionValues;
    parallel_for(shape.At(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        counts[image] = suppress_image(settings, predictions + image * shape.At(1) * shape.At(2), shape.At(1),
                                       detections + image * own);
      }
    });
  }
};

GT_CPU_KERNEL("graph_train_decode", DecodeKernel, GT_IS_FLOAT("anchors_cells"));
GT_CPU_KERNEL("graph_train_suppress", SuppressKernel, GT_IS_FLOAT("predictions"));

}  // namespace
}  // namespace graph_train
