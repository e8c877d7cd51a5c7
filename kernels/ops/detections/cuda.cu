// Decoding: one thread per value. Suppression: one block per image.
//
// The block collects its candidates as 64-bit keys in the order of suppression and sorts them, so that the result does
// not depend on the order in which threads find them. If there are too many, a radix select first finds the largest key
// to keep. Then the sorted candidates are visited, one per thread at a time: each is compared with the boxes already
// kept, and the remaining ones with each other.
#include "native/cuda/device.h"
#include "native/exact_rounding.h"
#include "ops/detections/launch.h"

namespace graph_train {

namespace {

constexpr unsigned int kAllLanes = 0xffffffffu;
constexpr int kDigits = 256;  // values of 8 bits of a key

// One image's part of the arguments.
struct Image {
  SuppressionSettings settings;
  const float* predictions;
  int64_t boxes;
  uint64_t* keys;
  Box<float>* kept;
  float* detections;
  GT_DEVICE const float* row(int64_t box) const { return predictions + box * (5 + settings.classes); }
};

GT_DEVICE Image image_of(const SuppressArgs& args) {
  const int64_t number = blockIdx.x, most = args.settings.max_detections;
  return {args.settings,
          args.predictions + number * args.boxes * (5 + args.settings.classes),
          args.boxes,
          args.keys + number * args.capacity,
          args.kept + number * most,
          args.detections + number * most * kDetectionValues};
}

// A class and its confidence. NaN counts as the highest; of equal ones, the first class wins.
struct Choice {
  float confidence;
  int32_t category;
};

GT_DEVICE bool is_better(const Choice& a, const Choice& b) {
  const bool a_is_nan = a.confidence != a.confidence, b_is_nan = b.confidence != b.confidence;
  if (a_is_nan != b_is_nan) return a_is_nan;
  if (!a_is_nan && a.confidence != b.confidence) return a.confidence > b.confidence;
  return a.category < b.category;
}

GT_DEVICE Choice best_of_warp(Choice best) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Choice other{__shfl_xor_sync(kAllLanes, best.confidence, distance),
                       __shfl_xor_sync(kAllLanes, best.category, distance)};
    if (is_better(other, best)) best = other;
  }
  return best;
}

// Calls body(key) for the candidates of one box, in the lanes that find them. Called by all lanes of a warp.
template<typename Body>
GT_DEVICE void for_candidates_of_box(const Image& image, int64_t box, const Body& body) {
  const SuppressionSettings& settings = image.settings;
  const int lane = threadIdx.x % kWarp;
  const float* row = image.row(box);
  Choice best{-1.0f, settings.classes};  // below all
  bool above = false;
  for (int category = lane; category < settings.classes; category += kWarp) {
    const Choice choice{row[5 + category] * row[4], category};
    const bool is_above = choice.confidence > settings.confidence;
    above = above || is_above;
    if (is_better(choice, best)) best = choice;
    if (settings.multi_label != 0 && is_above && settings.counts(category)) {
      body(candidate_key(choice.confidence, box, category, settings.classes));
    }
  }
  if (settings.multi_label != 0) return;
  const bool any = __ballot_sync(kAllLanes, above) != 0;
  best = best_of_warp(best);
  if (any && lane == 0 && settings.counts(best.category)) {
    body(candidate_key(best.confidence, box, best.category, settings.classes));
  }
}

// The same for all boxes; each lane of a warp tests the objectness of one box.
template<typename Body>
GT_DEVICE void for_candidates(const Image& image, const Body& body) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t first = warp * kWarp; first < image.boxes; first += kSuppressThreads) {
    const int64_t box = first + lane;
    const bool passes = box < image.boxes && image.row(box)[4] > image.settings.confidence;
    for (unsigned int votes = __ballot_sync(kAllLanes, passes); votes != 0; votes &= votes - 1) {
      for_candidates_of_box(image, first + __popc((votes & (0u - votes)) - 1), body);
    }
  }
}

GT_DEVICE int count_candidates(const Image& image) {
  int own = 0;
  for_candidates(image, [&](uint64_t) { ++own; });
  return block_sum<kSuppressThreads>(own);
}

// The key at position `rank` (from 0) in ascending order; there are more candidates than `rank`.
GT_DEVICE uint64_t key_of_rank(const Image& image, int rank) {
  GT_SHARED(int, histogram, kDigits);
  GT_SHARED(int, below, 1);
  GT_SHARED(int, chosen, 1);
  uint64_t prefix = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int digit = threadIdx.x; digit < kDigits; digit += kSuppressThreads) histogram[digit] = 0;
    __syncthreads();
    for_candidates(image, [&](uint64_t key) {
      // Shifted in two steps: by 64 there would be no shift at all.
      if ((key >> shift >> 8) == (prefix >> shift >> 8)) atomicAdd(&histogram[key >> shift & (kDigits - 1)], 1);
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 0, before = 0;
      while (before + histogram[digit] <= rank) before += histogram[digit++];
      chosen[0] = digit;
      below[0] = before;
    }
    __syncthreads();
    prefix |= static_cast<uint64_t>(chosen[0]) << shift;
    rank -= below[0];
  }
  return prefix;
}

// Collects at most max_candidates keys, unsorted; returns their number.
GT_DEVICE int collect_keys(const Image& image) {
  GT_SHARED(int, used, 1);
  const int all = count_candidates(image), most = image.settings.max_candidates;
  const uint64_t last = all > most ? key_of_rank(image, most - 1) : ~uint64_t{0};
  if (threadIdx.x == 0) used[0] = 0;
  __syncthreads();
  for_candidates(image, [&](uint64_t key) {
    if (key <= last) image.keys[atomicAdd(&used[0], 1)] = key;
  });
  __syncthreads();
  return all > most ? most : all;
}

// Bitonic sort in ascending order.
GT_DEVICE void sort_keys(uint64_t* keys, int number) {
  int size = 1;
  while (size < number) size *= 2;
  for (int i = number + static_cast<int>(threadIdx.x); i < size; i += kSuppressThreads) keys[i] = ~uint64_t{0};
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int i = threadIdx.x; i < size; i += kSuppressThreads) {
        const int partner = i ^ distance;
        if (partner < i) continue;
        const uint64_t low = keys[i], high = keys[partner];
        if ((low > high) == ((i & run) == 0)) {
          keys[i] = high;
          keys[partner] = low;
        }
      }
      __syncthreads();
    }
  }
}

// Visits the next candidates in order, one per thread; returns the new number of kept boxes.
GT_DEVICE int visit_candidates(const Image& image, int first, int number, int kept) {
  GT_SHARED(Box<float>, boxes, kSuppressThreads);
  GT_SHARED(int, alive, kSuppressThreads);
  const SuppressionSettings& settings = image.settings;
  const int own = threadIdx.x, here = number - first < kSuppressThreads ? number - first : kSuppressThreads;
  Candidate candidate{0, 0};
  Box<float> box{0, 0, 0, 0};
  bool is_alive = own < here;
  if (is_alive) {
    candidate = candidate_of(image.keys[first + own], settings.classes);
    box = nms_corners(settings, image.row(candidate.box), candidate.category);
    for (int other = 0; other < kept && is_alive; ++other) is_alive = !suppresses(image.kept[other], box, settings.iou);
  }
  boxes[own] = box;
  alive[own] = is_alive;
  __syncthreads();
  for (int next = 0; next < here && kept < settings.max_detections; ++next) {
    if (alive[next] == 0) continue;  // the same in all threads: it is only written between two barriers
    if (own == next) {
      image.kept[kept] = box;
      store_detection(image.row(candidate.box), candidate.category, image.detections + kDetectionValues * kept);
    }
    __syncthreads();
    if (own > next && alive[own] != 0 && suppresses(boxes[next], box, settings.iou)) alive[own] = 0;
    ++kept;
    __syncthreads();
  }
  __syncthreads();
  return kept;
}

}  // namespace

GT_KERNEL(decode, DecodeArgs, kDecodeThreads) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kDecodeThreads + threadIdx.x;
  if (number >= args.images * args.predictions * args.outputs) return;
  const int64_t row = number / args.outputs, place = number % args.outputs;
  const int64_t image = row / args.predictions, prediction = row % args.predictions;
  int level = args.level_count - 1;
  while (args.levels[level].first > prediction) --level;
  args.out[number] = decoded_value(args, args.levels[level], image, prediction - args.levels[level].first, place);
}

GT_BLOCK_KERNEL(suppress, SuppressArgs, kSuppressThreads) {
  const Image image = image_of(args);
  const int number = collect_keys(image);
  sort_keys(image.keys, number);
  int kept = 0;
  for (int first = 0; first < number && kept < image.settings.max_detections; first += kSuppressThreads) {
    kept = visit_candidates(image, first, number, kept);
  }
  const int all = image.settings.max_detections * kDetectionValues;
  for (int i = kept * kDetectionValues + static_cast<int>(threadIdx.x); i < all; i += kSuppressThreads) {
    image.detections[i] = 0;
  }
  if (threadIdx.x == 0) args.counts[blockIdx.x] = kept;
}

}  // namespace graph_train
