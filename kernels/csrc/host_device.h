// GT_HOST_DEVICE: before a function that the CPU's and the CUDA kernels share; it is always inlined.
#ifndef GRAPH_TRAIN_KERNELS_HOST_DEVICE_H_
#define GRAPH_TRAIN_KERNELS_HOST_DEVICE_H_

#ifdef __CUDACC__
#define GT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GT_HOST_DEVICE inline __attribute__((always_inline))
#endif

#endif  // GRAPH_TRAIN_KERNELS_HOST_DEVICE_H_
