#include "native/onednn.h"

#include <array>
#include <atomic>
#include <cstdlib>

namespace graph_train {

namespace {

bool has_isa(dnnl::cpu_isa wanted) {
  const auto bits = static_cast<unsigned>(wanted);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & bits) == bits;
}

// Decided by the CPU model and not by a measurement, so that a machine gives the same numbers in every run. bfloat16
// products are fast with AMX and in AMD's vector units; Intel's vector instruction does less arithmetic per cycle than
// its float multiply-add (Xeon of model 207 without AMX: convolutions take 1.7 times as long).
bool bf16_is_faster() {
  if (has_isa(dnnl::cpu_isa::avx512_core_amx)) return true;
  return has_isa(dnnl::cpu_isa::avx512_core_bf16) && __builtin_cpu_is("amd");
}

constexpr size_t kAlignment = 64;

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
};

}  // namespace

// Never destroyed: OneFlow's threads may outlive this library's static objects.
const dnnl::engine& dnnl_engine() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

dnnl::stream& dnnl_stream() {
  static auto* stream = new dnnl::stream(dnnl_engine());
  return *stream;
}

std::mutex& dnnl_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

dnnl::primitive_attr primitive_attributes() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

void* scratch_memory(Scratch slot, size_t bytes) {
  static auto* blocks = new std::array<Block, static_cast<size_t>(Scratch::kCount)>;
  Block& block = (*blocks)[static_cast<size_t>(slot)];
  if (bytes > block.bytes) {
    std::free(block.data);
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    block.data = std::aligned_alloc(kAlignment, rounded);
    CHECK(block.data != nullptr) << "out of memory: " << rounded << " bytes of scratch memory for a CPU kernel";
    block.bytes = rounded;
  }
  return block.data;
}

Argument::Argument(const dnnl::memory::desc& outer, const dnnl::memory::desc& inner, bool is_input, Scratch slot)
    : outer_(outer), inner_(inner), is_input_(is_input), slot_(slot) {
  if (outer == inner) return;
  const auto& from = is_input ? outer : inner;
  const auto& to = is_input ? inner : outer;
  conversion_ = dnnl::reorder(dnnl::reorder::primitive_desc(dnnl_engine(), from, dnnl_engine(), to));
}

dnnl::memory Argument::prepare(const void* data) const {
  dnnl::memory outer(outer_, dnnl_engine(), const_cast<void*>(data));
  if (!conversion_) return outer;
  dnnl::memory inner(inner_, dnnl_engine(), scratch_memory(slot_, inner_.get_size()));
  if (is_input_) conversion_.execute(dnnl_stream(), {{DNNL_ARG_FROM, outer}, {DNNL_ARG_TO, inner}});
  return inner;
}

void Argument::finish(const dnnl::memory& inner, void* data) const {
  if (is_input_ || !conversion_) return;
  dnnl::memory outer(outer_, dnnl_engine(), data);
  conversion_.execute(dnnl_stream(), {{DNNL_ARG_FROM, inner}, {DNNL_ARG_TO, outer}});
}

extern "C" GT_EXPORT int graph_train_bfloat16_is_faster() { return bf16_is_faster(); }

}  // namespace graph_train
