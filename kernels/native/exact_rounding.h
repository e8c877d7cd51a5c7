// Disables fused multiply-add in the code after this header: every product and sum is rounded separately.
#pragma once

// NVRTC gets --fmad=false for the files that include this header (kernels/build/nvrtc.py).
#ifndef __CUDACC__
// With such a pragma, GCC ignores the two other flags of the command line.
#pragma GCC optimize("fp-contract=off", "no-math-errno", "no-trapping-math")
#endif
