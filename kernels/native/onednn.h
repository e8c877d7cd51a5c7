// oneDNN for the plugin's kernels: one engine, one stream, and memory that is reused by all calls.
#pragma once

#include <dnnl.hpp>
#include <mutex>

#include "native/common.h"

namespace graph_train {

const dnnl::engine& dnnl_engine();
dnnl::stream& dnnl_stream();

// Held while a oneDNN primitive runs: all share the scratch memory below, and two thread teams on the same cores would
// slow each other down.
std::mutex& dnnl_mutex();

// Attributes of every primitive: the caller provides scratch memory.
dnnl::primitive_attr primitive_attributes();

// Memory that keeps its largest size, one block per slot; contents are undefined after the next request for the slot.
// To be used under dnnl_mutex().
enum class Scratch : int { kSource, kWeights, kTarget, kPrimitive, kCount };
void* scratch_memory(Scratch slot, size_t bytes);

// An argument of a primitive, converted between the caller's layout and the primitive's if they differ.
class Argument {
 public:
  // `is_input`: converted before the primitive runs, otherwise its result is converted back afterwards.
  Argument(const dnnl::memory::desc& outer, const dnnl::memory::desc& inner, bool is_input, Scratch slot);

  // Memory for the primitive, filled from `data` when this is an input.
  dnnl::memory prepare(const void* data) const;
  // Copies an output back to the caller's memory.
  void finish(const dnnl::memory& inner, void* data) const;

 private:
  dnnl::memory::desc outer_;
  dnnl::memory::desc inner_;
  bool is_input_;
  Scratch slot_;
  dnnl::reorder conversion_;
};

}  // namespace graph_train
