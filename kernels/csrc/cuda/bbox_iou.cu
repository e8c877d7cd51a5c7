// Overlap of matched box pairs on CUDA: one launch for the values, one for the gradients of both boxes.
// Nothing calls these launchers: no op has a CUDA kernel of ours yet, and all that tests show is that they compile.
// Reference and contract: kernels/bbox_iou.py. Plain launchers: device pointers, sizes, a stream; nothing is waited for.
#include "../bbox_iou.h"

#include <cstdint>
#include <cuda_runtime.h>

namespace graph_train {
namespace {

constexpr int kThreads = 256;

// Four numbers of a box in one transaction; boxes are 16 (float) or 32 (double) bytes and tensors are aligned to more.
__device__ Box<float> load_box(const float* boxes, int64_t i) {
  const float4 box = reinterpret_cast<const float4*>(boxes)[i];
  return {box.x, box.y, box.z, box.w};
}
__device__ Box<double> load_box(const double* boxes, int64_t i) {
  const double2 low = reinterpret_cast<const double2*>(boxes)[2 * i];
  const double2 high = reinterpret_cast<const double2*>(boxes)[2 * i + 1];
  return {low.x, low.y, high.x, high.y};
}
__device__ void store_box(float* boxes, int64_t i, const Box<float>& box) {
  reinterpret_cast<float4*>(boxes)[i] = make_float4(box.first, box.second, box.third, box.fourth);
}
__device__ void store_box(double* boxes, int64_t i, const Box<double>& box) {
  reinterpret_cast<double2*>(boxes)[2 * i] = make_double2(box.first, box.second);
  reinterpret_cast<double2*>(boxes)[2 * i + 1] = make_double2(box.third, box.fourth);
}

template<typename T, IouKind kind>
__global__ void values(const T* box1, const T* box2, T* out, int64_t pairs, bool centre_form, T eps) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < pairs; i += stride) {
    const Sides<T> a = sides_of(load_box(box1, i), centre_form, eps);
    const Sides<T> b = sides_of(load_box(box2, i), centre_form, eps);
    out[i] = pair_overlap<T, kind>(a, b, eps);
  }
}

template<typename T, IouKind kind>
__global__ void gradients(const T* box1, const T* box2, const T* grad, T* out1, T* out2, int64_t pairs,
                          bool centre_form, T eps) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < pairs; i += stride) {
    const Sides<T> a = sides_of(load_box(box1, i), centre_form, eps);
    const Sides<T> b = sides_of(load_box(box2, i), centre_form, eps);
    Sides<T> grad_a, grad_b;
    pair_gradient<T, kind>(a, b, eps, grad[i], &grad_a, &grad_b);
    store_box(out1, i, stored_gradient(grad_a, centre_form));
    store_box(out2, i, stored_gradient(grad_b, centre_form));
  }
}

int blocks_for(int64_t pairs) {
  const int64_t blocks = (pairs + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 65535 ? blocks : 65535);
}

template<typename T>
struct Call {
  const T* box1;
  const T* box2;
  const T* grad;  // null: values are wanted
  T* out1;
  T* out2;
  int64_t pairs;
  bool centre_form;
  T eps;
  cudaStream_t stream;

  template<IouKind kind>
  void launch() const {
    if (grad == nullptr) {
      values<T, kind><<<blocks_for(pairs), kThreads, 0, stream>>>(box1, box2, out1, pairs, centre_form, eps);
    } else {
      gradients<T, kind>
          <<<blocks_for(pairs), kThreads, 0, stream>>>(box1, box2, grad, out1, out2, pairs, centre_form, eps);
    }
  }

  // The CUDA error code; 0 is success.
  int run(int kind) const {
    if (pairs == 0) return cudaSuccess;
    switch (static_cast<IouKind>(kind)) {
      case IouKind::kIou: launch<IouKind::kIou>(); break;
      case IouKind::kGiou: launch<IouKind::kGiou>(); break;
      case IouKind::kDiou: launch<IouKind::kDiou>(); break;
      case IouKind::kCiou: launch<IouKind::kCiou>(); break;
      default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
  }
};

}  // namespace
}  // namespace graph_train

// All return the CUDA error code, 0 is success. Boxes (pairs, 4), 16-byte aligned; kind as in kernels/bbox_iou.py.
extern "C" {

int graph_train_cuda_bbox_iou_float(const float* box1, const float* box2, float* out, int64_t pairs, int kind,
                                    int centre_form, float eps, cudaStream_t stream) {
  return graph_train::Call<float>{box1, box2, nullptr, out, nullptr, pairs, centre_form != 0, eps, stream}.run(kind);
}

int graph_train_cuda_bbox_iou_double(const double* box1, const double* box2, double* out, int64_t pairs, int kind,
                                     int centre_form, double eps, cudaStream_t stream) {
  return graph_train::Call<double>{box1, box2, nullptr, out, nullptr, pairs, centre_form != 0, eps, stream}.run(kind);
}

// Gradients of box1 and box2 stand one behind the other in `out`: (2, pairs, 4).
int graph_train_cuda_bbox_iou_grad_float(const float* box1, const float* box2, const float* grad, float* out,
                                         int64_t pairs, int kind, int centre_form, float eps, cudaStream_t stream) {
  return graph_train::Call<float>{box1, box2, grad, out, out + 4 * pairs, pairs, centre_form != 0, eps, stream}.run(
      kind);
}

int graph_train_cuda_bbox_iou_grad_double(const double* box1, const double* box2, const double* grad, double* out,
                                          int64_t pairs, int kind, int centre_form, double eps, cudaStream_t stream) {
  return graph_train::Call<double>{box1, box2, grad, out, out + 4 * pairs, pairs, centre_form != 0, eps, stream}.run(
      kind);
}

}  // extern "C"
