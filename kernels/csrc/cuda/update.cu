// The whole optimizer step on CUDA: three launches for any number of parameters, no value comes back to the host.
// Nothing calls these launchers: no op has a CUDA kernel of ours yet, and all that tests show is that they compile.
// Reference and contract: kernels/update.py. Compile with --fmad=false: the results are then the bits of the CPU kernel,
// but for the order of the squares in the norm.
#include "../update.h"

#include <cuda_runtime.h>

namespace graph_train {
namespace {

constexpr int kThreads = 512;

// Sum over the block, in a fixed order; the result is that of thread 0.
__device__ double block_sum(double value) {
  __shared__ double shared[kThreads];
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

// One block per piece: the sum of the squares of its unscaled gradient.
__global__ void squared_norms(const Piece* pieces, const float* hyper, double* partial) {
  if (!(hyper[kUpdate] > 0)) return;
  const Piece piece = pieces[blockIdx.x];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < piece.count; i += kThreads) {
    sum += unscaled_square(piece.gradient_sum[i], piece.gradient[i], hyper[kInverseLossScale]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: the norm, and whether the weights will be updated.
__global__ void finish_norm(const double* partial, int64_t pieces, const float* hyper, float* out) {
  if (!(hyper[kUpdate] > 0)) {
    if (threadIdx.x == 0) {
      out[0] = nanf("");
      out[1] = 0;
    }
    return;
  }
  double sum = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    const float norm = static_cast<float>(sqrt(sum));
    out[0] = norm;
    out[1] = isfinite(norm) ? 1 : 0;
  }
}

__device__ void accumulate(const Piece& piece) {
  for (int64_t i = threadIdx.x; i < piece.count; i += kThreads) {
    piece.gradient_sum[i] = piece.gradient_sum[i] + piece.gradient[i];
  }
}

// One block per piece: accumulates, resets or updates, as `hyper` and `out` say.
__global__ void apply(const Piece* pieces, Rule rule, const float* hyper, float max_norm, const float* out) {
  const Piece piece = pieces[blockIdx.x];
  if (!(hyper[kUpdate] > 0)) return accumulate(piece);
  const bool updates = out[1] > 0;
  const GroupStep step = group_step(hyper, piece.group, clip_factor(out[0], max_norm));
  for (int64_t i = threadIdx.x; i < piece.count; i += kThreads) {
    const float gradient = piece.gradient_sum[i] + piece.gradient[i];
    piece.gradient_sum[i] = 0;
    if (!updates) continue;
    if (rule == Rule::kSgd) {
      sgd_element(step, gradient, piece.parameter + i, piece.first_moment + i, piece.ema + i);
    } else {
      adam_element(step, rule == Rule::kAdamW, gradient, piece.parameter + i, piece.first_moment + i,
                   piece.second_moment + i, piece.ema + i);
    }
  }
}

}  // namespace
}  // namespace graph_train

extern "C" {

// Size of one entry of the table of pieces and the largest number of elements of a piece, for who fills the table.
int64_t graph_train_cuda_update_piece_bytes() { return sizeof(graph_train::Piece); }
int64_t graph_train_cuda_update_piece_elements() { return graph_train::kPiece; }

// Returns the CUDA error code, 0 is success; nothing is waited for.
//   pieces: on the device, `count` entries of graph_train::Piece with device pointers.
//   rule: 0 SGD, 1 Adam, 2 AdamW. hyper: (17,) on the device. partial: scratch of `count` doubles on the device.
//   out: (2,) on the device: norm before clipping (NaN without update), 1 if the weights were updated.
int graph_train_cuda_update(const graph_train::Piece* pieces, int64_t count, int rule, const float* hyper,
                            float max_norm, double* partial, float* out, cudaStream_t stream) {
  using namespace graph_train;
  if (count <= 0 || rule < 0 || rule > 2) return cudaErrorInvalidValue;
  const auto blocks = static_cast<unsigned>(count);
  squared_norms<<<blocks, kThreads, 0, stream>>>(pieces, hyper, partial);
  finish_norm<<<1, kThreads, 0, stream>>>(partial, count, hyper, out);
  apply<<<blocks, kThreads, 0, stream>>>(pieces, static_cast<Rule>(rule), hyper, max_norm, out);
  return cudaGetLastError();
}

}  // extern "C"
