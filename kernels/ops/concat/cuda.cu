// Concatenation and split along an axis; a thread copies one unit.
#include "native/cuda/device.h"
#include "ops/concat/concat.h"

namespace graph_train {

struct alignas(16) Unit16 {
  uint64_t halves[2];
};

// The last piece that starts at or before `column`; pieces are never empty.
GT_DEVICE const ConcatPiece& piece_at(const ConcatPiece* pieces, int number, int64_t column) {
  int low = 0, high = number - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (pieces[middle].offset <= column) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return pieces[low];
}

template<typename Unit, bool kJoin>
GT_DEVICE void copy_unit(const ConcatArgs& args) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t count = args.rows * args.width;
  if (index >= count) return;
  // 32-bit division is several times as fast.
  const int64_t row =
      count >> 32 == 0 ? static_cast<uint32_t>(index) / static_cast<uint32_t>(args.width) : index / args.width;
  const int64_t column = index - row * args.width;
  const ConcatPiece& piece = piece_at(args.table != nullptr ? args.table : args.pieces, args.number, column);
  Unit* own = static_cast<Unit*>(piece.data) + row * piece.width + (column - piece.offset);
  Unit* joined = static_cast<Unit*>(args.joined) + index;
  if (kJoin) {
    *joined = *own;
  } else {
    *own = *joined;
  }
}

GT_KERNEL(concat_16, ConcatArgs, kConcatThreads) { copy_unit<Unit16, true>(args); }
GT_KERNEL(concat_8, ConcatArgs, kConcatThreads) { copy_unit<uint64_t, true>(args); }
GT_KERNEL(concat_4, ConcatArgs, kConcatThreads) { copy_unit<uint32_t, true>(args); }
GT_KERNEL(concat_2, ConcatArgs, kConcatThreads) { copy_unit<uint16_t, true>(args); }
GT_KERNEL(concat_1, ConcatArgs, kConcatThreads) { copy_unit<uint8_t, true>(args); }
GT_KERNEL(split_16, ConcatArgs, kConcatThreads) { copy_unit<Unit16, false>(args); }
GT_KERNEL(split_8, ConcatArgs, kConcatThreads) { copy_unit<uint64_t, false>(args); }
GT_KERNEL(split_4, ConcatArgs, kConcatThreads) { copy_unit<uint32_t, false>(args); }
GT_KERNEL(split_2, ConcatArgs, kConcatThreads) { copy_unit<uint16_t, false>(args); }
GT_KERNEL(split_1, ConcatArgs, kConcatThreads) { copy_unit<uint8_t, false>(args); }

}  // namespace graph_train
