// Self-attention on the CPU with oneDNN's matrix products; each thread processes one head of one image at a time.
#include <type_traits>
#include <vector>

#include "native/onednn.h"
#include "native/vector_kernels.h"
#include "ops/attention/call.h"

namespace graph_train {

namespace {

// A matrix inside a larger one.
struct Matrix {
  float* data = nullptr;
  int64_t stride = 0;  // from row to row
  bool transposed = false;
};

// c (rows, columns) = scale * a b.
void multiply(int64_t rows, int64_t columns, int64_t inner, float scale, const Matrix& a, const Matrix& b,
              const Matrix& c) {
  const auto status = dnnl_sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', rows, columns, inner, scale,
                                 a.data, a.stride, b.data, b.stride, 0.0f, c.data, c.stride);
  CHECK(status == dnnl_success) << "oneDNN matrix product failed: status " << status;
}

Matrix transposed(const Matrix& matrix) { return {matrix.data, matrix.stride, !matrix.transposed}; }

GT_VECTOR void softmax(float* scores, int64_t count) {
  float highest = scores[0];
  for (int64_t i = 1; i < count; ++i) highest = scores[i] > highest ? scores[i] : highest;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) scores[i] = exp_of_negative(scores[i] - highest);
  for (int64_t i = 0; i < count; ++i) sum += scores[i];
  const auto scale = static_cast<float>(1.0 / sum);
  for (int64_t i = 0; i < count; ++i) scores[i] *= scale;
}

// Converts the gradients of the attention weights, in place, to those of the scores.
GT_VECTOR void softmax_gradient(const float* weights, float* gradient, int64_t count) {
  double mean = 0.0;
  for (int64_t i = 0; i < count; ++i) mean += static_cast<double>(weights[i]) * gradient[i];
  const auto offset = static_cast<float>(mean);
  for (int64_t i = 0; i < count; ++i) gradient[i] = weights[i] * (gradient[i] - offset);
}

// One head of one image: views of float activations.
struct Head {
  int64_t tokens = 0, channels = 0;
  float scale = 1.0f;
  Matrix query, key, value;
  Matrix weights;
};

Head head_of(const AttentionShape& s, float* x, float* weights, int64_t image, int64_t head) {
  const int64_t width = 3 * s.channels, size = s.head_channels();
  float* own = x + image * s.tokens * width + head * size;
  float* rows = weights + (image * s.heads + head) * s.tokens * s.tokens;
  return {s.tokens,        size, s.scale(), {own, width}, {own + s.channels, width}, {own + 2 * s.channels, width},
          {rows, s.tokens}};
}

void attend(const Head& head, const Matrix& y) {
  multiply(head.tokens, head.tokens, head.channels, head.scale, head.query, transposed(head.key), head.weights);
  for (int64_t token = 0; token < head.tokens; ++token) softmax(head.weights.data + token * head.tokens, head.tokens);
  multiply(head.tokens, head.channels, head.tokens, 1.0f, head.weights, head.value, y);
}

// `gradient` has the layout of x and receives the gradients of query, key and value.
void attend_gradient(const Head& head, const Matrix& dy, const Head& gradient, float* memory) {
  const Matrix scores{memory, head.tokens};
  multiply(head.tokens, head.channels, head.tokens, 1.0f, transposed(head.weights), dy, gradient.value);
  multiply(head.tokens, head.tokens, head.channels, 1.0f, dy, transposed(head.value), scores);
  for (int64_t token = 0; token < head.tokens; ++token) {
    softmax_gradient(head.weights.data + token * head.tokens, memory + token * head.tokens, head.tokens);
  }
  multiply(head.tokens, head.channels, head.tokens, head.scale, scores, head.key, gradient.query);
  multiply(head.tokens, head.channels, head.tokens, head.scale, transposed(scores), head.query, gradient.key);
}

// Activations as float: the memory itself, or a copy that `finish` writes back.
template<typename T>
class Floats {
 public:
  Floats(const void* memory, int64_t count) : memory_(static_cast<T*>(const_cast<void*>(memory))), count_(count) {
    if constexpr (!std::is_same_v<T, float>) {
      copy_.resize(count);
      vector_kernels().widen(memory_, copy_.data(), count);
    }
  }
  float* data() {
    if constexpr (std::is_same_v<T, float>) {
      return memory_;
    } else {
      return copy_.data();
    }
  }
  void finish() {
    if constexpr (!std::is_same_v<T, float>) vector_kernels().round(copy_.data(), memory_, count_);
  }

 private:
  T* memory_;
  int64_t count_;
  std::vector<float> copy_;
};

template<typename T>
class AttentionKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const AttentionArgs args = attention_args(ctx, false);
    const AttentionShape s = args.shape;
    const int64_t count = s.images * s.tokens * s.channels;
    Floats<T> x(args.x, 3 * count), y(args.out, count);
    const std::lock_guard<std::mutex> lock(dnnl_mutex());
    parallel_for(s.images * s.heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t image = at / s.heads, head = at % s.heads;
        float* own = y.data() + image * s.tokens * s.channels + head * s.head_channels();
        attend(head_of(s, x.data(), args.weights, image, head), {own, s.channels});
      }
    });
    y.finish();
  }
};

template<typename T>
class AttentionGradKernel final : public StatelessKernel {
  void Compute(user_op::KernelComputeContext* ctx) const override {
    const AttentionArgs args = attention_args(ctx, true);
    const AttentionShape s = args.shape;
    const int64_t count = s.images * s.tokens * s.channels;
    Floats<T> x(args.x, 3 * count), dy(args.dy, count), dx(args.out, 3 * count);
    const std::lock_guard<std::mutex> lock(dnnl_mutex());
    parallel_for(s.images * s.heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> memory(s.tokens * s.tokens);
      for (int64_t at = begin; at < end; ++at) {
        const int64_t image = at / s.heads, head = at % s.heads;
        float* own = dy.data() + image * s.tokens * s.channels + head * s.head_channels();
        attend_gradient(head_of(s, x.data(), args.weights, image, head), {own, s.channels},
                        head_of(s, dx.data(), args.weights, image, head), memory.data());
      }
    });
    dx.finish();
  }
};

GT_CPU_ACTIVATION_KERNEL("graph_train_attention", AttentionKernel, GT_ALWAYS);
GT_CPU_ACTIVATION_KERNEL("graph_train_attention_grad", AttentionGradKernel, GT_ALWAYS);

}  // namespace

}  // namespace graph_train
