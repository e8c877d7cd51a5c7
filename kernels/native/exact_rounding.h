// Disables fused multiply-add in the code after this header: every product and sum is rounded separately.
#ifndef GRAPH_TRAIN_KERNELS_EXACT_ROUNDING_H_
#define GRAPH_TRAIN_KERNELS_EXACT_ROUNDING_H_

// NVRTC gets --fmad=false for the files that include this header (kernels/build/nvrtc.py).
#ifndef __CUDACC__
// GCC forgets the two other flags of the command line when there is such a pragma.
#pragma GCC optimize("fp-contract=off", "no-math-errno", "no-trapping-math")
#endif

#endif  // GRAPH_TRAIN_KERNELS_EXACT_ROUNDING_H_
