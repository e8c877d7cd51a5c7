// Iteration of a thread of BatchNorm's CUDA kernels over its rows of an array (rows, channels).
#pragma once

#include "native/cuda/device.h"
#include "ops/batch_norm/batch_norm.h"

namespace graph_train {

// Number of rows after which float sums are flushed, to limit rounding.
constexpr int kNormFlush = 64;

struct NormSums {
  float first[kNormPerThread], second[kNormPerThread];
};

// The rows and channels of one thread in one piece.
struct NormShare {
  int64_t channel;  // the first
  int number;       // of channels; 0 for an idle thread
  int lane;
  int64_t first, last, step;  // rows
  int64_t part;
};

GT_DEVICE NormShare norm_share(const NormPieces& p, int64_t piece) {
  NormShare share{};
  const int column = static_cast<int>(threadIdx.x) % p.columns;
  share.lane = static_cast<int>(threadIdx.x) / p.columns;
  share.channel = (piece % p.tiles * p.columns + column) * kNormPerThread;
  share.part = piece / p.tiles;
  const int64_t left = p.channels - share.channel;
  if (share.lane < p.lanes && left > 0) share.number = left < kNormPerThread ? static_cast<int>(left) : kNormPerThread;
  share.first = p.rows * share.part / p.parts + share.lane;
  share.last = p.rows * (share.part + 1) / p.parts;
  share.step = p.lanes;
  return share;
}

// A thread's elements in one row.
template<typename T>
struct alignas(16) NormRow {
  T values[kNormPerThread];
};

// Returns whether a thread has all kNormPerThread channels, aligned to 16 bytes in every row.
template<typename T>
GT_DEVICE bool is_whole(const NormArgs& args, const NormShare& share) {
  const auto places = reinterpret_cast<uint64_t>(args.x) | reinterpret_cast<uint64_t>(args.dy)
                      | reinterpret_cast<uint64_t>(args.out) | static_cast<uint64_t>(args.channels) * sizeof(T);
  return share.number == kNormPerThread && places % 16 == 0;
}

// Branch-free if kWhole, so that several rows are loaded at once. Missing elements are 0.
template<bool kWhole, typename T>
GT_DEVICE NormRow<T> load_row(const void* tensor, int64_t place, int number) {
  const T* from = static_cast<const T*>(tensor) + place;
  NormRow<T> row;
  if (kWhole) {
    for (int first = 0; first < kNormPerThread; first += kPerAccess<T>) {
      *reinterpret_cast<Access<T>*>(row.values + first) = *reinterpret_cast<const Access<T>*>(from + first);
    }
  } else {
    for (int i = 0; i < kNormPerThread; ++i) row.values[i] = i < number ? from[i] : T{};
  }
  return row;
}

// Adds body.load(row) of one thread's rows to its sums, two per channel, which are kNormThreads apart. A thread reads
// Body::kAtOnce rows before it uses the first, because there are too few threads to hide the latency otherwise.
template<bool kWhole, typename Body>
GT_DEVICE void sum_own_rows(const NormShare& share, const Body& body, float* own) {
  for (int64_t row = share.first; row < share.last;) {
    NormSums sums{};
    int rows = 0;
    for (; kWhole && rows < kNormFlush && row + (Body::kAtOnce - 1) * share.step < share.last; rows += Body::kAtOnce) {
      typename Body::Row at_once[Body::kAtOnce];
      for (int i = 0; i < Body::kAtOnce; ++i, row += share.step) at_once[i] = body.template load<kWhole>(row);
      for (int i = 0; i < Body::kAtOnce; ++i) body.add(at_once[i], &sums);
    }
#pragma unroll 1
    for (; rows < kNormFlush && row < share.last; ++rows, row += share.step) {
      body.add(body.template load<kWhole>(row), &sums);
    }
    for (int i = 0; i < kNormPerThread; ++i) {
      own[2 * i * kNormThreads] += sums.first[i];
      own[(2 * i + 1) * kNormThreads] += sums.second[i];
    }
  }
}

// Calls body.store(row, body.load(row)) for one thread's rows, from the last to the first.
template<bool kWhole, typename Body>
GT_DEVICE void change_own_rows(const NormShare& share, const Body& body) {
  if (share.first >= share.last) return;
  int64_t row = share.first + (share.last - 1 - share.first) / share.step * share.step;
  while (kWhole && row - (Body::kAtOnce - 1) * share.step >= share.first) {
    typename Body::Row at_once[Body::kAtOnce];
    for (int i = 0; i < Body::kAtOnce; ++i) at_once[i] = body.template load<kWhole>(row - i * share.step);
    for (int i = 0; i < Body::kAtOnce; ++i, row -= share.step) body.store(row, at_once[i]);
  }
#pragma unroll 1
  for (; row >= share.first; row -= share.step) body.store(row, body.template load<kWhole>(row));
}

template<typename Body>
GT_DEVICE void change_rows(const NormShare& share, bool whole, const Body& body) {
  if (whole) {
    change_own_rows<true>(share, body);
  } else {
    change_own_rows<false>(share, body);
  }
}

}  // namespace graph_train
