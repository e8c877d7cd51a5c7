// The detection loss of all levels and the gradients of their maps in one cooperative launch.
//
// The blocks first count the matches of the whole batch, on which the scales of all gradients depend, and wait for each
// other. Then each processes tiles, i.e. some cells of one image and level. It finds the matches in its tile by testing
// all labels of the image again, in build order. A cell belongs to one warp at a time, which adds the contributions of
// its matches in that order. After another barrier, one block adds the sums of the tiles. The results do not depend on
// the order in which blocks and threads run.
#include "native/cuda/device.h"
#include "native/exact_rounding.h"
#include "ops/detection_loss/launch.h"
#include "ops/detection_loss/rebalance.h"

namespace graph_train {

namespace {

constexpr int kLossWarps = kLossThreads / kWarp;
constexpr unsigned int kAllLanes = 0xffffffffu;

struct Tile {
  LossLevel level;
  LossScales scales;
  int64_t image;       // in the labels
  int64_t first_cell;  // of the image
  int cells;
  const float* map;  // of the tile's first cell
  float* gradient;
};

// State of the cells of a block's tile.
struct Cells {
  float* targets;  // of the objectness
  int* matched;
};

GT_DEVICE Tile tile_at(const LossArgs& args, int64_t number, const LossScales* scales) {
  int index = 0;
  while (number >= args.first_tile[index + 1]) ++index;
  Tile tile;
  tile.level = args.levels[index];
  tile.scales = scales[index];
  const int64_t cells = tile.level.cells(), per_image = tiles_of_image(cells);
  const int64_t own_image = (number - args.first_tile[index]) / per_image;
  tile.first_cell = (number - args.first_tile[index]) % per_image * kLossTile;
  tile.cells = static_cast<int>(smaller<int64_t>(kLossTile, cells - tile.first_cell));
  tile.image = args.first_image + own_image;
  const int64_t start = (own_image * cells + tile.first_cell) * tile.level.channels;
  tile.map = tile.level.map + start;
  tile.gradient = tile.level.gradient + start;
  return tile;
}

GT_DEVICE void count_block_matches(const LossArgs& args, float limit) {
  const int64_t labels = args.batch * args.slots, step = static_cast<int64_t>(gridDim.x) * kLossThreads;
  for (int level = 0; level < args.level_count; ++level) {
    int64_t matches = 0;
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x; at < labels; at += step) {
      matches += count_matches(args.levels[level], args.labels + at * kLabelValues, limit);
    }
    matches = block_sum<kLossThreads>(matches);
    if (threadIdx.x == 0) args.counts[level * kMaxLossBlocks + blockIdx.x] = matches;
  }
}

// Adds the counts of all blocks and computes `matches` and `scales` of each level.
GT_DEVICE void prepare_scales(const LossArgs& args, const LossSettings& settings, double* matches, LossScales* scales) {
  for (int level = 0; level < args.level_count; ++level) {
    int64_t all = 0;
    for (int block = threadIdx.x; block < gridDim.x; block += kLossThreads) {
      all += args.counts[level * kMaxLossBlocks + block];
    }
    all = block_sum<kLossThreads>(all);
    if (threadIdx.x == 0) {
      matches[level] = static_cast<double>(larger<int64_t>(1, all));
      scales[level] =
          loss_scales(settings, args.levels[level], args.batch, matches[level], args.balance[level], args.scale[0]);
    }
  }
  __syncthreads();
}

// Whether an entry (neighbour, anchor, label), numbered in build order, is a match within the tile.
GT_DEVICE bool entry_match(const LossArgs& args, const LossSettings& settings, const Tile& tile, int entry,
                           Match* match) {
  const LossLevel& level = tile.level;
  const int anchors = static_cast<int>(level.anchors);
  if (entry >= kNeighbours * anchors * args.slots) return false;
  const int slot = entry % args.slots, anchor = entry / args.slots % anchors, neighbour = entry / args.slots / anchors;
  const float* label = args.labels + (tile.image * args.slots + slot) * kLabelValues;
  if (!is_label(label)) return false;
  const PlacedLabel placed = place_label(level, label);
  if (!reaches_neighbour(level, placed, neighbour)) return false;
  *match = match_of(level, placed, label[0], neighbour, anchor);
  match->cell -= tile.first_cell;
  if (match->cell < 0 || match->cell >= tile.cells) return false;
  return fits_anchor(placed, level.anchor_sides + 2 * anchor, settings.anchor_t);
}

// Writes the matches among the next kLossThreads entries to `found`, in build order, and returns their number.
GT_DEVICE int find_matches(const LossArgs& args, const LossSettings& settings, const Tile& tile, int first_entry,
                           Match* found) {
  GT_SHARED(int, of_warps, kLossWarps);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Match match;
  const bool matches = entry_match(args, settings, tile, first_entry + static_cast<int>(threadIdx.x), &match);
  const unsigned int votes = __ballot_sync(kAllLanes, matches);
  if (lane == 0) of_warps[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1)), all = 0;
  for (int other = 0; other < kLossWarps; ++other) {
    if (other < warp) before += of_warps[other];
    all += of_warps[other];
  }
  if (matches) found[before] = match;
  __syncthreads();
  return all;
}

// Adds one match's gradient to its cell's row; `again` is false for the first match of the cell. Called by all lanes of
// a warp.
GT_DEVICE float add_match(const LossSettings& settings, const Tile& tile, const Match& match, bool again,
                          LossSums* sums) {
  const int lane = threadIdx.x % kWarp, classes = static_cast<int>(tile.level.classes());
  const float* row = tile.map + match.cell * tile.level.channels;
  float* gradient = tile.gradient + match.cell * tile.level.channels;
  const BoxLoss box = box_loss(match, tile.level.anchor_sides + 2 * match.anchor, row, tile.scales.box);
  if (lane == 0) {
    for (int i = 0; i < 4; ++i) gradient[i] = (again ? gradient[i] : 0.0f) + box.gradient[i];
  }
  float loss = 0;
  for (int i = lane; i < classes; i += kWarp) {
    ElementLoss element{0, 0};
    if (classes > 1) {
      const float target = i == match.class_index ? settings.positive_target : settings.negative_target;
      element = element_loss(settings, row[5 + i], target, settings.class_positive_weight);
    }
    gradient[5 + i] = (again ? gradient[5 + i] : 0.0f) + tile.scales.classes * element.gradient;
    loss += element.loss;
  }
  sums->classes += warp_sum(loss);
  sums->box += 1.0f - box.iou;
  return box.iou;
}

// Adds the matches in `found`; a cell's matches are all added by the warp that has the first of them.
GT_DEVICE void add_matches(const LossSettings& settings, const Tile& tile, const Match* found, int number,
                           const Cells& cells, LossSums* sums) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int first = warp; first < number; first += kLossWarps) {
    const int64_t cell = found[first].cell;
    bool earlier = false;
    for (int other = lane; other < first; other += kWarp) earlier = earlier || found[other].cell == cell;
    if (__ballot_sync(kAllLanes, earlier) != 0) continue;
    // Only the first lane reads and writes the state of the cell.
    bool again = __shfl_sync(kAllLanes, lane == 0 ? cells.matched[cell] : 0, 0) != 0;
    float target = lane == 0 ? cells.targets[cell] : 0.0f;
    for (int other = first; other < number; ++other) {
      if (found[other].cell != cell) continue;
      const float iou = add_match(settings, tile, found[other], again, sums);
      target = objectness_target(settings, target, iou);
      again = true;
    }
    if (lane == 0) {
      cells.targets[cell] = target;
      cells.matched[cell] = 1;
    }
  }
}

// Objectness loss of this thread's cell. Its derivative replaces the target and, in a matched row, is written to the
// gradient.
GT_DEVICE float add_objectness(const LossSettings& settings, const Tile& tile, const Cells& cells) {
  const int cell = threadIdx.x;
  if (cell >= tile.cells) return 0;
  const int64_t place = cell * tile.level.channels + 4;
  const ElementLoss element =
      element_loss(settings, tile.map[place], cells.targets[cell], settings.objectness_positive_weight);
  cells.targets[cell] = tile.scales.objectness * element.gradient;
  if (cells.matched[cell] != 0) tile.gradient[place] = cells.targets[cell];
  return element.loss;
}

// Writes the rows of cells without a match: zeros except for the objectness.
GT_DEVICE void fill_rows(const Tile& tile, const Cells& cells) {
  constexpr int kValues = 4;  // per access
  const int channels = static_cast<int>(tile.level.channels), all = tile.cells * channels;
  for (int first = threadIdx.x * kValues; first < all; first += kLossThreads * kValues) {
    int cell = first / channels, channel = first % channels;
    float values[kValues] = {};
    bool writes[kValues] = {};
    for (int i = 0; i < kValues && cell < tile.cells; ++i) {
      if (channel == 4) values[i] = cells.targets[cell];
      writes[i] = cells.matched[cell] == 0;
      if (++channel == channels) {
        channel = 0;
        ++cell;
      }
    }
    if (writes[0] && writes[1] && writes[2] && writes[3]) {
      store_floats<kValues>(tile.gradient + first, kValues, values);
      continue;
    }
    for (int i = 0; i < kValues; ++i) {
      if (writes[i]) tile.gradient[first + i] = values[i];
    }
  }
}

GT_DEVICE void tile_loss(const LossArgs& args, const LossSettings& settings, int64_t number, const LossScales* scales) {
  GT_SHARED(Match, found, kLossThreads);
  GT_SHARED(float, targets, kLossTile);
  GT_SHARED(int, matched, kLossTile);
  static_assert(kLossTile == kLossThreads, "a thread for each cell");
  const Cells cells{targets, matched};
  const Tile tile = tile_at(args, number, scales);
  const int entries = kNeighbours * static_cast<int>(tile.level.anchors) * args.slots;
  targets[threadIdx.x] = 0;
  matched[threadIdx.x] = 0;
  LossSums sums{};
  int matches = 0;
  for (int first = 0; first < entries; first += kLossThreads) {
    const int more = find_matches(args, settings, tile, first, found);
    add_matches(settings, tile, found, more, cells, &sums);
    matches += more;
    __syncthreads();
  }
  __syncthreads();
  const float objectness = block_sum<kLossThreads>(add_objectness(settings, tile, cells));
  fill_rows(tile, cells);
  if (matches > 0) {  // the same in all threads
    const bool counts = threadIdx.x % kWarp == 0;
    sums.box = block_sum<kLossThreads>(counts ? sums.box : 0.0);
    sums.classes = block_sum<kLossThreads>(counts ? sums.classes : 0.0);
  }
  if (threadIdx.x == 0) args.sums[number] = {sums.box, objectness, sums.classes};
  __syncthreads();
}

GT_DEVICE LossSums level_sums(const LossArgs& args, int level) {
  LossSums sums{};
  for (int64_t tile = args.first_tile[level] + threadIdx.x; tile < args.first_tile[level + 1]; tile += kLossThreads) {
    sums.box += args.sums[tile].box;
    sums.objectness += args.sums[tile].objectness;
    sums.classes += args.sums[tile].classes;
  }
  return {block_sum<kLossThreads>(sums.box), block_sum<kLossThreads>(sums.objectness),
          block_sum<kLossThreads>(sums.classes)};
}

GT_DEVICE void store_outputs(const LossArgs& args, const LossSettings& settings, const double* matches) {
  LossOutputs outputs{};
  for (int level = 0; level < args.level_count; ++level) {
    const LossSums sums = level_sums(args, level);
    if (threadIdx.x == 0) {
      outputs.add(settings, args.levels[level], args.batch, matches[level], args.balance[level], sums,
                  args.parts + 3 + level);
    }
  }
  if (threadIdx.x == 0) outputs.store(args.batch, args.total, args.parts);
}

}  // namespace

GT_BLOCK_KERNEL(detection_loss, LossArgs, kLossThreads) {
  GT_SHARED(double, matches, kMaxLevels);
  GT_SHARED(LossScales, scales, kMaxLevels);
  const LossSettings settings = *reinterpret_cast<const LossSettings*>(args.settings);
  count_block_matches(args, settings.anchor_t);
  grid_barrier(args.grid_counters);
  prepare_scales(args, settings, matches, scales);
  for (int64_t tile = blockIdx.x; tile < args.first_tile[args.level_count]; tile += gridDim.x) {
    tile_loss(args, settings, tile, scales);
  }
  grid_barrier(args.grid_counters);
  if (blockIdx.x == 0) store_outputs(args, settings, matches);
  leave_grid(args.grid_counters);
}

GT_KERNEL(rebalance_levels, RebalanceArgs, kWarp) {
  if (threadIdx.x == 0) rebalance(args);
}

}  // namespace graph_train
