// Target assignment and loss of all levels of a detection head, with the gradients of their maps, in one pass.
//
// Parallel over images, which have no cells in common. Sums are per image, in double, and added in the order of the
// images, so that results do not depend on the number of threads.
#include <cstring>

#include "native/attributes.h"

// The cell of a label is found by comparing rounded values.
#include "native/exact_rounding.h"
#include "ops/detection_loss/call.h"
#include "ops/detection_loss/rebalance.h"

namespace graph_train {
namespace {

struct Labels {
  const float* numbers;  // (batch, slots, 5)
  int64_t slots;
  const float* at(int64_t image, int64_t slot) const { return numbers + (image * slots + slot) * kLabelValues; }
};

// Matches of one image and level, in YOLOv5's order: neighbour, anchor, label.
std::vector<Match> find_matches(const LossSettings& settings, const LossLevel& level, const Labels& labels,
                                int64_t image) {
  std::vector<Match> matches;
  for (int neighbour = 0; neighbour < kNeighbours; ++neighbour) {
    for (int anchor = 0; anchor < level.anchors; ++anchor) {
      for (int64_t slot = 0; slot < labels.slots; ++slot) {
        const float* label = labels.at(image, slot);
        if (!is_label(label)) continue;
        const PlacedLabel placed = place_label(level, label);
        if (!reaches_neighbour(level, placed, neighbour)) continue;
        if (!fits_anchor(placed, level.anchor_sides + 2 * anchor, settings.anchor_t)) continue;
        CHECK_LT(label[0], level.classes()) << "a label's class is beyond the head's classes";
        matches.push_back(match_of(level, placed, label[0], neighbour, anchor));
      }
    }
  }
  return matches;
}

// Number of matches of the whole batch at each level, at least 1.
std::vector<double> count_all_matches(const LossSettings& settings, const std::vector<LossLevel>& levels,
                                      const Labels& labels, int64_t batch) {
  std::vector<double> counts;
  for (const LossLevel& level : levels) {
    int64_t matches = 0;
    for (int64_t label = 0; label < batch * labels.slots; ++label) {
      matches += count_matches(level, labels.numbers + label * kLabelValues, settings.anchor_t);
    }
    counts.push_back(static_cast<double>(std::max<int64_t>(1, matches)));
  }
  return counts;
}

GT_VECTOR void cross_entropy(const float* __restrict__ logits, const float* __restrict__ targets, float positive_weight,
                             int64_t count, float* __restrict__ losses, float* __restrict__ gradients) {
  for (int64_t i = 0; i < count; ++i) {
    const ElementLoss element = cross_entropy_element(logits[i], targets[i], positive_weight);
    losses[i] = element.loss;
    gradients[i] = element.gradient;
  }
}

GT_VECTOR void focal_loss(const float* __restrict__ logits, const float* __restrict__ targets, float positive_weight,
                          float gamma, float alpha, int64_t count, float* __restrict__ losses,
                          float* __restrict__ gradients) {
  for (int64_t i = 0; i < count; ++i) {
    const ElementLoss element = focal_element(logits[i], targets[i], positive_weight, gamma, alpha);
    losses[i] = element.loss;
    gradients[i] = element.gradient;
  }
}

// Buffers for one image and level, reused for the next.
struct Scratch {
  std::vector<float> logits, objectness_targets, class_targets, losses, gradients;

  void prepare(const LossLevel& level) {
    logits.resize(level.cells());
    objectness_targets.assign(level.cells(), 0.0f);
    class_targets.resize(level.classes());
    losses.resize(std::max(level.cells(), level.classes()));
    gradients.resize(losses.size());
  }

  // Computes `losses` and `gradients` of the logits; returns the sum of the losses.
  double elements(const LossSettings& settings, const float* of_logits, const float* targets, float positive_weight,
                  int64_t count) {
    if (settings.focal_gamma > 0) {
      focal_loss(of_logits, targets, positive_weight, settings.focal_gamma, settings.focal_alpha, count, losses.data(),
                 gradients.data());
    } else {
      cross_entropy(of_logits, targets, positive_weight, count, losses.data(), gradients.data());
    }
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += losses[i];
    return sum;
  }
};

double class_loss(const LossSettings& settings, const LossLevel& level, const Match& match, const float* row,
                  float scale, float* gradient, Scratch& scratch) {
  const int64_t classes = level.classes();
  std::fill(scratch.class_targets.begin(), scratch.class_targets.end(), settings.negative_target);
  scratch.class_targets[match.class_index] = settings.positive_target;
  const double sum =
      scratch.elements(settings, row + 5, scratch.class_targets.data(), settings.class_positive_weight, classes);
  for (int64_t i = 0; i < classes; ++i) gradient[5 + i] += scale * scratch.gradients[i];
  return sum;
}

double objectness_loss(const LossSettings& settings, const LossLevel& level, const float* map, float scale,
                       float* gradient, Scratch& scratch) {
  const int64_t cells = level.cells(), channels = level.channels;
  for (int64_t cell = 0; cell < cells; ++cell) scratch.logits[cell] = map[cell * channels + 4];
  const double sum = scratch.elements(settings, scratch.logits.data(), scratch.objectness_targets.data(),
                                      settings.objectness_positive_weight, cells);
  for (int64_t cell = 0; cell < cells; ++cell) gradient[cell * channels + 4] = scale * scratch.gradients[cell];
  return sum;
}

// Losses of one image at one level, and the gradient of its part of the map.
LossSums image_loss(const LossSettings& settings, const LossLevel& level, const std::vector<Match>& matches,
                    const LossScales& scales, int64_t image, Scratch& scratch) {
  const int64_t start = image * level.cells() * level.channels;
  const float* map = level.map + start;
  float* gradient = level.gradient + start;
  LossSums sums{};
  scratch.prepare(level);
  std::memset(gradient, 0, sizeof(float) * level.cells() * level.channels);
  for (const Match& match : matches) {
    const float* row = map + match.cell * level.channels;
    float* row_gradient = gradient + match.cell * level.channels;
    const BoxLoss box = box_loss(match, level.anchor_sides + 2 * match.anchor, row, scales.box);
    for (int i = 0; i < 4; ++i) row_gradient[i] += box.gradient[i];
    sums.box += 1.0f - box.iou;
    if (level.classes() > 1) {
      sums.classes += class_loss(settings, level, match, row, scales.classes, row_gradient, scratch);
    }
    float& target = scratch.objectness_targets[match.cell];
    target = objectness_target(settings, target, box.iou);
  }
  sums.objectness = objectness_loss(settings, level, map, scales.objectness, gradient, scratch);
  return sums;
}

class DetectionLossKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    LossSettings settings;
    std::memcpy(&settings, data_of(ctx, "settings"), sizeof(settings));
    const auto levels = levels_of(ctx);
    const LocalImages images = local_images(ctx);
    const Labels labels{data_of(ctx, "labels"), view_of(ctx, "labels").At(1)};
    const auto counts = count_all_matches(settings, levels, labels, images.batch);
    const float* balance = data_of(ctx, "balance");
    std::vector<LossScales> scales;
    for (size_t level = 0; level < levels.size(); ++level) {
      scales.push_back(
          loss_scales(settings, levels[level], images.batch, counts[level], balance[level], data_of(ctx, "scale")[0]));
    }
    std::vector<std::vector<LossSums>> sums(levels.size(), std::vector<LossSums>(images.count));
    parallel_for(images.count, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      for (int64_t image = begin; image < end; ++image) {
        for (size_t level = 0; level < levels.size(); ++level) {
          const auto matches = find_matches(settings, levels[level], labels, images.first + image);
          sums[level][image] = image_loss(settings, levels[level], matches, scales[level], image, scratch);
        }
      }
    });
    float* parts = result_of(ctx, "out", 1);
    LossOutputs outputs{};
    for (size_t level = 0; level < levels.size(); ++level) {
      outputs.add(settings, levels[level], images.batch, counts[level], balance[level], sum_over_images(sums[level]),
                  parts + 3 + level);
    }
    outputs.store(images.batch, result_of(ctx, "out", 0), parts);
  }

  static LossSums sum_over_images(const std::vector<LossSums>& of_images) {
    LossSums total{};
    for (const LossSums& sums : of_images) {
      total.box += sums.box;
      total.objectness += sums.objectness;
      total.classes += sums.classes;
    }
    return total;
  }
};

class RebalanceKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    rebalance({ctx->Tensor4ArgNameAndIndex("balance", 0)->mut_dptr<float>(), data_of(ctx, "parts"), result_of(ctx),
               static_cast<int32_t>(view_of(ctx, "balance").elem_cnt()), static_cast<int32_t>(integers_of(ctx).at(0))});
  }
};

GT_CPU_KERNEL("graph_train_detection_loss", DetectionLossKernel, GT_IS_FLOAT("map"));
GT_CPU_KERNEL("graph_train_rebalance", RebalanceKernel, GT_IS_FLOAT("balance"));

}  // namespace
}  // namespace graph_train
