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
struct NormThread {
  int64_t channel;  // the first
  int channels;     // 0 for an idle thread
  int lane;
  int64_t first, last, step;  // rows
  int64_t part;
};

GT_DEVICE NormThread norm_thread(const NormPieces& p, int64_t piece) {
  NormThread thread{};
  const int column = static_cast<int>(threadIdx.x) % p.columns;
  thread.lane = static_cast<int>(threadIdx.x) / p.columns;
  thread.channel = (piece % p.tiles * p.columns + column) * kNormPerThread;
  thread.part = piece / p.tiles;
  const int64_t left = p.channels - thread.channel;
  if (thread.lane < p.lanes && left > 0)
    thread.channels = left < kNormPerThread ? static_cast<int>(left) : kNormPerThread;
  thread.first = p.rows * thread.part / p.parts + thread.lane;
  thread.last = p.rows * (thread.part + 1) / p.parts;
  thread.step = p.lanes;
  return thread;
}

// A thread's elements in one row.
template<typename T>
struct alignas(16) NormRow {
  T values[kNormPerThread];
};

// Returns whether a thread has all kNormPerThread channels, aligned to 16 bytes in every row.
template<typename T>
GT_DEVICE bool is_whole(const NormArgs& args, const NormThread& thread) {
  const auto places = reinterpret_cast<uint64_t>(args.x) | reinterpret_cast<uint64_t>(args.dy)
                      | reinterpret_cast<uint64_t>(args.out) | static_cast<uint64_t>(args.channels) * sizeof(T);
  return thread.channels == kNormPerThread && places % 16 == 0;
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
GT_DEVICE void sum_thread_rows(const NormThread& thread, const Body& body, float* own) {
  for (int64_t row = thread.first; row < thread.last;) {
    NormSums sums{};
    int rows = 0;
    for (; kWhole && rows < kNormFlush && row + (Body::kAtOnce - 1) * thread.step < thread.last;
         rows += Body::kAtOnce) {
      typename Body::Row at_once[Body::kAtOnce];
      for (int i = 0; i < Body::kAtOnce; ++i, row += thread.step) at_once[i] = body.template load<kWhole>(row);
      for (int i = 0; i < Body::kAtOnce; ++i) body.add(at_once[i], &sums);
    }
#pragma unroll 1
    for (; rows < kNormFlush && row < thread.last; ++rows, row += thread.step) {
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
GT_DEVICE void update_thread_rows(const NormThread& thread, const Body& body) {
  if (thread.first >= thread.last) return;
  int64_t row = thread.first + (thread.last - 1 - thread.first) / thread.step * thread.step;
  while (kWhole && row - (Body::kAtOnce - 1) * thread.step >= thread.first) {
    typename Body::Row at_once[Body::kAtOnce];
    for (int i = 0; i < Body::kAtOnce; ++i) at_once[i] = body.template load<kWhole>(row - i * thread.step);
    for (int i = 0; i < Body::kAtOnce; ++i, row -= thread.step) body.store(row, at_once[i]);
  }
#pragma unroll 1
  for (; row >= thread.first; row -= thread.step) body.store(row, body.template load<kWhole>(row));
}

template<typename Body>
GT_DEVICE void update_rows(const NormThread& thread, bool whole, const Body& body) {
  if (whole) {
    update_thread_rows<true>(thread, body);
  } else {
    update_thread_rows<false>(thread, body);
  }
}

}  // namespace graph_train
