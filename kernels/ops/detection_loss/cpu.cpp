// Target assignment and loss of one level of a detection head, with the gradient of its map, in one pass.
// Contract: kernels/detection_loss.py; composed reference: models/loss.py and models/targets.py.
//
// An image never shares a cell with another one, so images are the unit of parallel work. Sums are kept per image in
// double and added in the order of the images: results do not depend on the number of threads.
#include <cmath>
#include <cstring>

#include "ops/bbox_iou/bbox_iou.h"
#include "native/attributes.h"

// Which cell a label belongs to is decided by comparing rounded numbers: a fused multiply-add would move labels that lie
// exactly on a border.
#include "native/exact_rounding.h"

namespace graph_train {
namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

constexpr int kNeighbours = 5;
constexpr float kReach = 0.5f;
// The label's own cell, then left, up, right, down: what is subtracted from the centre before rounding down.
constexpr float kShift[kNeighbours][2] = {{0, 0}, {kReach, 0}, {0, kReach}, {-kReach, 0}, {0, -kReach}};
constexpr float kIouEps = 1e-7f;
constexpr int kParts = 4;  // total, box, objectness, classes

// What stands before the labels in the second input; LevelSetting of kernels/detection_loss.py.
struct Settings {
  float box_gain, objectness_gain, class_gain, class_positive_weight, objectness_positive_weight, anchor_t;
  float positive_target, negative_target, gr, best_iou_wins, balance;
};
constexpr int64_t kSettings = sizeof(Settings) / sizeof(float);

struct Level {
  int64_t batch, anchors, rows, columns, channels, slots;
  Settings settings;
  const float* anchor_sides;  // (anchors, 2) in cells
  const float* labels;        // (batch, slots, 5)
  int64_t cells() const { return anchors * rows * columns; }
  int64_t classes() const { return channels - 5; }
};

// A label and a prediction that answers for it; boxes in cells, centre relative to the cell's corner.
struct Match {
  int64_t cell;
  int64_t anchor;
  int64_t number_of_class;
  Box<float> target;
};

struct Sums {
  double box = 0, objectness = 0, classes = 0;
};

// e^x for x <= 0; relative error below 1e-7. NaN stays NaN.
GT_INLINE float exp_of_negative(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum is rounded to a whole number
  const float whole = shifted - 12582912.0f;
  const float rest = (bounded - whole * 0.693359375f) - whole * -2.12194440e-4f;  // ln 2 in two parts
  float sum = 1.0f / 5040;
  sum = sum * rest + 1.0f / 720;
  sum = sum * rest + 1.0f / 120;
  sum = sum * rest + 1.0f / 24;
  sum = sum * rest + 1.0f / 6;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  const int32_t exponent = (static_cast<int32_t>(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &exponent, sizeof(power));
  return sum * power;
}

// log(1 + u) for u in [0, 1], as 2 artanh(u / (2 + u)).
GT_INLINE float log_of_one_plus(float u) {
  const float s = u / (2.0f + u), z = s * s;
  float sum = 1.0f / 13;
  sum = sum * z + 1.0f / 11;
  sum = sum * z + 1.0f / 9;
  sum = sum * z + 1.0f / 7;
  sum = sum * z + 1.0f / 5;
  sum = sum * z + 1.0f / 3;
  return 2.0f * s + 2.0f * s * (sum * z);
}

// Binary cross-entropy of logits against targets: losses and their derivatives.
GT_VECTOR void cross_entropy(const float* __restrict__ logits, const float* __restrict__ targets,
                             float positive_weight, int64_t count, float* __restrict__ losses,
                             float* __restrict__ gradients) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = logits[i], t = targets[i];
    const float power = exp_of_negative(x < 0 ? x : -x);
    const float weight = 1.0f + (positive_weight - 1.0f) * t;
    const float minus_log_sigmoid = log_of_one_plus(power) + (x < 0 ? -x : 0.0f);
    const float one_minus_sigmoid = (x < 0 ? 1.0f : power) / (1.0f + power);
    losses[i] = (1.0f - t) * x + weight * minus_log_sigmoid;
    gradients[i] = (1.0f - t) - weight * one_minus_sigmoid;
  }
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

bool fits(float width, float height, const float* anchor, float limit) {
  const float ratio_x = width / anchor[0], ratio_y = height / anchor[1];
  const float worst_x = std::max(ratio_x, 1.0f / ratio_x), worst_y = std::max(ratio_y, 1.0f / ratio_y);
  return std::max(worst_x, worst_y) < limit;
}

// Whether a centre lies nearer than half a cell to the border behind it, and that is not the border of the image.
bool near(float distance) { return distance - std::floor(distance) < kReach && distance > 1.0f; }

// Matches of one image in YOLOv5's order: neighbour, anchor, label.
std::vector<Match> find_matches(const Level& level, int64_t image) {
  std::vector<Match> matches;
  const auto width = static_cast<float>(level.columns), height = static_cast<float>(level.rows);
  for (int neighbour = 0; neighbour < kNeighbours; ++neighbour) {
    for (int64_t anchor = 0; anchor < level.anchors; ++anchor) {
      for (int64_t slot = 0; slot < level.slots; ++slot) {
        const float* label = level.labels + (image * level.slots + slot) * 5;
        if (!(label[0] >= 0)) continue;
        const float x = label[1] * width, y = label[2] * height, w = label[3] * width, h = label[4] * height;
        const float distances[kNeighbours] = {0, x, y, width - x, height - y};
        if (neighbour > 0 && !near(distances[neighbour])) continue;
        if (!fits(w, h, level.anchor_sides + 2 * anchor, level.settings.anchor_t)) continue;
        const float column = std::min(std::max(std::floor(x - kShift[neighbour][0]), 0.0f), width - 1.0f);
        const float row = std::min(std::max(std::floor(y - kShift[neighbour][1]), 0.0f), height - 1.0f);
        const auto number_of_class = static_cast<int64_t>(label[0]);
        CHECK_LT(number_of_class, level.classes()) << "a label's class is beyond the head's classes";
        const int64_t cell =
            (anchor * level.rows + static_cast<int64_t>(row)) * level.columns + static_cast<int64_t>(column);
        matches.push_back({cell, anchor, number_of_class, {x - column, y - row, w, h}});
      }
    }
  }
  return matches;
}

// Box loss of one match: adds the gradient of its logits, returns the CIoU. `scale` is d total / d CIoU.
float box_loss(const Level& level, const Match& match, const float* row, float scale, float* gradient) {
  const float* anchor = level.anchor_sides + 2 * match.anchor;
  const float scores[4] = {sigmoid(row[0]), sigmoid(row[1]), sigmoid(row[2]), sigmoid(row[3])};
  const float twice_w = scores[2] * 2.0f, twice_h = scores[3] * 2.0f;
  const Box<float> box{scores[0] * 2.0f - 0.5f, scores[1] * 2.0f - 0.5f, twice_w * twice_w * anchor[0],
                       twice_h * twice_h * anchor[1]};
  const Sides<float> predicted = sides_of(box, true, kIouEps), wanted = sides_of(match.target, true, kIouEps);
  Sides<float> grad_predicted, grad_wanted;
  pair_gradient<float, IouKind::kCiou>(predicted, wanted, kIouEps, scale, &grad_predicted, &grad_wanted);
  const Box<float> grad = stored_gradient(grad_predicted, true);
  gradient[0] += grad.first * 2.0f * scores[0] * (1.0f - scores[0]);
  gradient[1] += grad.second * 2.0f * scores[1] * (1.0f - scores[1]);
  gradient[2] += grad.third * anchor[0] * 2.0f * twice_w * twice_w * (1.0f - scores[2]);
  gradient[3] += grad.fourth * anchor[1] * 2.0f * twice_h * twice_h * (1.0f - scores[3]);
  return pair_overlap<float, IouKind::kCiou>(predicted, wanted, kIouEps);
}

// Numbers that one image needs, kept between images.
struct Scratch {
  explicit Scratch(const Level& level)
      : objectness_targets(level.cells()), logits(level.cells()), losses(std::max(level.cells(), level.classes())),
        gradients(losses.size()), class_targets(level.classes()) {}
  std::vector<float> objectness_targets, logits, losses, gradients, class_targets;
};

double sum_of(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

double class_loss(const Level& level, const Match& match, const float* row, float scale, float* gradient,
                  Scratch& scratch) {
  const int64_t classes = level.classes();
  std::fill(scratch.class_targets.begin(), scratch.class_targets.end(), level.settings.negative_target);
  scratch.class_targets[match.number_of_class] = level.settings.positive_target;
  cross_entropy(row + 5, scratch.class_targets.data(), level.settings.class_positive_weight, classes,
                scratch.losses.data(), scratch.gradients.data());
  for (int64_t i = 0; i < classes; ++i) gradient[5 + i] += scale * scratch.gradients[i];
  return sum_of(scratch.losses.data(), classes);
}

double objectness_loss(const Level& level, const float* map, float scale, float* gradient, Scratch& scratch) {
  const int64_t cells = level.cells(), channels = level.channels;
  for (int64_t cell = 0; cell < cells; ++cell) scratch.logits[cell] = map[cell * channels + 4];
  cross_entropy(scratch.logits.data(), scratch.objectness_targets.data(), level.settings.objectness_positive_weight,
                cells, scratch.losses.data(), scratch.gradients.data());
  for (int64_t cell = 0; cell < cells; ++cell) gradient[cell * channels + 4] = scale * scratch.gradients[cell];
  return sum_of(scratch.losses.data(), cells);
}

// Losses of one image and the gradient of its part of the map. `matches` counts those of the whole batch, at least 1.
Sums image_loss(const Level& level, const std::vector<Match>& found, double matches, const float* map, float* gradient,
                Scratch& scratch) {
  const Settings& settings = level.settings;
  // The total is the sum of the means, times the batch size.
  const auto batch = static_cast<double>(level.batch), classes = static_cast<double>(level.classes());
  const auto box_scale = static_cast<float>(-settings.box_gain * batch / matches);
  const auto class_scale = static_cast<float>(settings.class_gain * batch / (matches * classes));
  const auto objectness_scale =
      static_cast<float>(settings.objectness_gain * settings.balance / static_cast<double>(level.cells()));
  Sums sums;
  std::memset(gradient, 0, sizeof(float) * level.cells() * level.channels);
  std::fill(scratch.objectness_targets.begin(), scratch.objectness_targets.end(), 0.0f);
  for (const Match& match : found) {
    const float* row = map + match.cell * level.channels;
    float* row_gradient = gradient + match.cell * level.channels;
    const float iou = box_loss(level, match, row, box_scale, row_gradient);
    sums.box += 1.0f - iou;
    if (level.classes() > 1) sums.classes += class_loss(level, match, row, class_scale, row_gradient, scratch);
    const float quality = iou > 0 ? iou : 0.0f;  // NaN, of a network that diverged, counts as 0 too
    const float target = settings.gr < 1 ? (1.0f - settings.gr) + settings.gr * quality : quality;
    float& kept = scratch.objectness_targets[match.cell];
    kept = settings.best_iou_wins != 0 ? std::max(kept, target) : target;
  }
  sums.objectness = objectness_loss(level, map, objectness_scale, gradient, scratch);
  return sums;
}

class DetectionLossKernel final : public user_op::OpKernel {
 private:
  using user_op::OpKernel::Compute;
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const auto* map = ctx->Tensor4ArgNameAndIndex("map", 0);
    const auto* packed = ctx->Tensor4ArgNameAndIndex("settings_and_labels", 0);
    const auto& shape = map->shape_view();
    Level level{shape.At(0), shape.At(1), shape.At(2), shape.At(3), shape.At(4), 0, {}, nullptr, nullptr};
    std::memcpy(&level.settings, packed->dptr<float>(), sizeof(Settings));
    level.anchor_sides = packed->dptr<float>() + kSettings;
    level.labels = level.anchor_sides + 2 * level.anchors;
    level.slots = (packed->shape_view().elem_cnt() - kSettings - 2 * level.anchors) / (5 * level.batch);
    run(level, map->dptr<float>(), ctx->Tensor4ArgNameAndIndex("out", 0)->mut_dptr<float>(),
        ctx->Tensor4ArgNameAndIndex("out", 1)->mut_dptr<float>());
  }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }

  static void run(const Level& level, const float* map, float* parts, float* gradient) {
    std::vector<std::vector<Match>> found(level.batch);
    std::vector<Sums> sums(level.batch);
    size_t matches = 0;
    for (int64_t image = 0; image < level.batch; ++image) {
      found[image] = find_matches(level, image);
      matches += found[image].size();
    }
    const double count = std::max<double>(1, static_cast<double>(matches));
    const int64_t image_elements = level.cells() * level.channels;
    parallel_for(level.batch, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(level);
      for (int64_t image = begin; image < end; ++image) {
        const int64_t start = image * image_elements;
        sums[image] = image_loss(level, found[image], count, map + start, gradient + start, scratch);
      }
    });
    Sums total;
    for (const Sums& of_image : sums) {
      total.box += of_image.box;
      total.objectness += of_image.objectness;
      total.classes += of_image.classes;
    }
    const Settings& settings = level.settings;
    const double box = settings.box_gain * total.box / count;
    const double objectness = total.objectness / static_cast<double>(level.batch * level.cells());
    const double classes = settings.class_gain * total.classes / (count * static_cast<double>(level.classes()));
    parts[0] = static_cast<float>((box + settings.objectness_gain * settings.balance * objectness + classes)
                                  * static_cast<double>(level.batch));
    parts[1] = static_cast<float>(box);
    parts[2] = static_cast<float>(objectness);
    parts[3] = static_cast<float>(classes);
  }
};

Maybe<void> infer_shape(user_op::InferContext* ctx) {
  const Shape& map = ctx->InputShape("map", 0);
  CHECK_EQ_OR_RETURN(map.NumAxes(), 5);
  CHECK_GT_OR_RETURN(map.elem_cnt(), 0);
  const int64_t labels = ctx->InputShape("settings_and_labels", 0).elem_cnt() - kSettings - 2 * map.At(1);
  CHECK_OR_RETURN(labels >= 0 && labels % (5 * map.At(0)) == 0);
  ctx->SetOutputShape("out", 0, Shape({kParts}));
  ctx->SetOutputShape("out", 1, map);
  return Maybe<void>::Ok();
}

Maybe<void> infer_dtype(user_op::InferContext* ctx) {
  CHECK_EQ_OR_RETURN(ctx->InputDType("map", 0), DataType::kFloat);
  CHECK_EQ_OR_RETURN(ctx->InputDType("settings_and_labels", 0), DataType::kFloat);
  for (int32_t index = 0; index < 2; ++index) ctx->SetOutputDType("out", index, DataType::kFloat);
  return Maybe<void>::Ok();
}

// Means run over the whole batch, so it cannot be split over devices.
REGISTER_NO_GRAD_USER_OP("graph_train_detection_loss")
    .Input("map")
    .Input("settings_and_labels")
    .Output("out")
    .GT_ATTRIBUTES()
    .SetLogicalTensorDescInferFn(infer_shape)
    .SetPhysicalTensorDescInferFn(infer_shape)
    .SetGetSbpFn(user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast)
    .SetDataTypeInferFn(infer_dtype);

GT_CPU_KERNEL("graph_train_detection_loss", DetectionLossKernel, GT_IS_FLOAT("map"));

}  // namespace
}  // namespace graph_train
