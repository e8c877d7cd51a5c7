// Activation functions and their gradients; a thread processes consecutive elements.
#include "native/cuda/device.h"
#include "ops/activation_function/activation_function.h"

namespace graph_train {

// Calls body(first, number) for this thread's elements: kActivatePerThread, fewer at the end.
template<typename Body>
GT_DEVICE void for_thread_elements(int64_t count, const Body& body) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kActivatePerThread;
  if (first >= count) return;
  const int64_t left = count - first;
  body(first, left < kActivatePerThread ? static_cast<int>(left) : kActivatePerThread);
}

struct Values {
  float* values;
  float parameter;
  template<ActivationKind kind>
  GT_DEVICE void run() const {
    for (int i = 0; i < kActivatePerThread; ++i) values[i] = activated<kind>(values[i], parameter);
  }
};

struct Gradients {
  const float* values;
  float* gradients;
  float parameter;
  template<ActivationKind kind>
  GT_DEVICE void run() const {
    for (int i = 0; i < kActivatePerThread; ++i) gradients[i] *= activation_slope<kind>(values[i], parameter);
  }
};

template<typename T>
GT_DEVICE void activate(const ActivateArgs& args) {
  for_thread_elements(args.count, [&](int64_t first, int number) {
    float values[kActivatePerThread] = {};
    load_floats<kActivatePerThread>(static_cast<const T*>(args.x) + first, number, values);
    with_kind(args.kind, Values{values, args.parameter});
    store_floats<kActivatePerThread>(static_cast<T*>(args.out) + first, number, values);
  });
}

template<typename T>
GT_DEVICE void activate_grad(const ActivateArgs& args) {
  for_thread_elements(args.count, [&](int64_t first, int number) {
    float values[kActivatePerThread] = {}, gradients[kActivatePerThread] = {};
    load_floats<kActivatePerThread>(static_cast<const T*>(args.x) + first, number, values);
    load_floats<kActivatePerThread>(static_cast<const T*>(args.dy) + first, number, gradients);
    with_kind(args.kind, Gradients{values, gradients, args.parameter});
    store_floats<kActivatePerThread>(static_cast<T*>(args.out) + first, number, gradients);
  });
}

GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, activate, ActivateArgs, kActivateThreads)
GT_KERNEL_OF_ACTIVATIONS(GT_KERNEL, activate_grad, ActivateArgs, kActivateThreads)

}  // namespace graph_train
