#include "ops/convolution/convolution.h"

#include <map>
#include <memory>
#include <vector>

#include "native/common.h"
#include "native/onednn.h"
#include "ops/convolution/pointwise.h"
#include "ops/convolution/winograd.h"

namespace graph_train {

namespace {

using dnnl::memory;

// A primitive with its arguments in the order x, weights, y.
struct Convolution {
  dnnl::primitive primitive;
  std::vector<Argument> arguments;
  std::array<int, 3> names{};  // DNNL_ARG_* of x, weights, y
  memory::desc scratchpad;
};

struct Layouts {
  memory::desc x, weights, y;
};

Layouts outer_layouts(const ConvolutionShape& s) {
  using tag = memory::format_tag;
  const auto type = memory::data_type::f32;
  const auto activation_type = s.bfloat16_activations ? memory::data_type::bf16 : type;
  const auto activations = s.channels_last ? tag::nhwc : tag::nchw;
  const memory::dims x{s.batch, s.in_channels, s.in_height, s.in_width};
  const memory::dims y{s.batch, s.out_channels, s.out_height, s.out_width};
  memory::desc weights;
  if (s.groups == 1) {
    const memory::dims dims{s.out_channels, s.in_channels, s.kernel_height, s.kernel_width};
    weights = memory::desc(dims, type, s.weights_channels_last ? tag::ohwi : tag::oihw);
  } else {
    const memory::dims dims{s.groups, s.out_channels / s.groups, s.in_channels / s.groups, s.kernel_height,
                            s.kernel_width};
    weights = memory::desc(dims, type, s.weights_channels_last ? tag::gohwi : tag::goihw);
  }
  return {memory::desc(x, activation_type, activations), weights, memory::desc(y, activation_type, activations)};
}

// Layouts requested from oneDNN: its own choice for weights and for channels-first activations, which it would have to
// convert; channels-last activations are used in place. With bfloat16 activations, weights are converted to bfloat16.
Layouts wanted_layouts(ConvolutionPass pass, const ConvolutionShape& s, const Layouts& outer) {
  const auto factor = s.bfloat16_activations ? memory::data_type::bf16 : memory::data_type::f32;
  const auto type_of = [&](const memory::desc& like, ConvolutionPass result) {
    return pass == result ? like.get_data_type() : factor;
  };
  const auto any = [](const memory::desc& like, memory::data_type type) {
    return memory::desc(like.get_dims(), type, memory::format_tag::any);
  };
  const auto activations = [&](const memory::desc& like, memory::data_type type) {
    return s.channels_last ? memory::desc(like.get_dims(), type, memory::format_tag::nhwc) : any(like, type);
  };
  return {activations(outer.x, type_of(outer.x, ConvolutionPass::kDataGradient)),
          any(outer.weights, type_of(outer.weights, ConvolutionPass::kFilterGradient)),
          activations(outer.y, type_of(outer.y, ConvolutionPass::kForward))};
}

int64_t weight_count(const ConvolutionShape& s) {
  return s.out_channels * (s.in_channels / s.groups) * s.kernel_height * s.kernel_width;
}

int64_t missing_after(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t before) {
  return (out - 1) * stride + (kernel - 1) * dilation + 1 - in - before;
}

template<typename Description>
void set_layouts(Convolution* made, const Description& description, const Layouts& outer, ConvolutionPass pass,
                 const Layouts& inner) {
  const bool reads_x = pass != ConvolutionPass::kDataGradient;
  const bool reads_weights = pass != ConvolutionPass::kFilterGradient;
  const bool reads_y = pass != ConvolutionPass::kForward;
  made->arguments.emplace_back(outer.x, inner.x, reads_x, Scratch::kSource);
  made->arguments.emplace_back(outer.weights, inner.weights, reads_weights, Scratch::kWeights);
  made->arguments.emplace_back(outer.y, inner.y, reads_y, Scratch::kTarget);
  made->scratchpad = description.scratchpad_desc();
}

std::unique_ptr<Convolution> make_convolution(ConvolutionPass pass, const ConvolutionShape& s) {
  using dnnl::convolution_backward_data;
  using dnnl::convolution_backward_weights;
  using dnnl::convolution_forward;
  const Layouts outer = outer_layouts(s);
  const Layouts want = wanted_layouts(pass, s, outer);
  const memory::dims strides{s.stride_height, s.stride_width};
  const memory::dims dilates{s.dilation_height - 1, s.dilation_width - 1};
  const memory::dims before{s.pad_top, s.pad_left};
  const memory::dims after{
      missing_after(s.in_height, s.out_height, s.kernel_height, s.stride_height, s.dilation_height, s.pad_top),
      missing_after(s.in_width, s.out_width, s.kernel_width, s.stride_width, s.dilation_width, s.pad_left)};
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const auto& engine = dnnl_engine();
  const auto attributes = primitive_attributes();
  auto made = std::make_unique<Convolution>();
  // The gradients' primitives need it as a hint.
  const Layouts given = wanted_layouts(ConvolutionPass::kForward, s, outer);
  const convolution_forward::primitive_desc forward(engine, dnnl::prop_kind::forward_training, algorithm, given.x,
                                                    given.weights, given.y, strides, dilates, before, after,
                                                    attributes);
  if (pass == ConvolutionPass::kForward) {
    made->primitive = convolution_forward(forward);
    made->names = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    set_layouts(made.get(), forward, outer, pass, {forward.src_desc(), forward.weights_desc(), forward.dst_desc()});
  } else if (pass == ConvolutionPass::kDataGradient) {
    const convolution_backward_data::primitive_desc gradient(engine, algorithm, want.x, want.weights, want.y, strides,
                                                             dilates, before, after, forward, attributes);
    made->primitive = convolution_backward_data(gradient);
    made->names = {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST};
    set_layouts(made.get(), gradient, outer, pass,
                {gradient.diff_src_desc(), gradient.weights_desc(), gradient.diff_dst_desc()});
  } else {
    const convolution_backward_weights::primitive_desc gradient(engine, algorithm, want.x, want.weights, want.y,
                                                                strides, dilates, before, after, forward, attributes);
    made->primitive = convolution_backward_weights(gradient);
    made->names = {DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST};
    set_layouts(made.get(), gradient, outer, pass,
                {gradient.src_desc(), gradient.diff_weights_desc(), gradient.diff_dst_desc()});
  }
  return made;
}

using Key = std::array<int64_t, sizeof(ConvolutionShape) / sizeof(int64_t) + 1>;

Key key_of(ConvolutionPass pass, const ConvolutionShape& s) {
  static_assert(sizeof(ConvolutionShape) % sizeof(int64_t) == 0, "all members are int64_t");
  Key key;
  const auto* sizes = reinterpret_cast<const int64_t*>(&s);
  std::copy(sizes, sizes + key.size() - 1, key.begin());
  key[key.size() - 1] = static_cast<int64_t>(pass);
  return key;
}

const Convolution& cached_convolution(ConvolutionPass pass, const ConvolutionShape& shape) {
  static auto* cache = new std::map<Key, std::unique_ptr<Convolution>>;
  auto& entry = (*cache)[key_of(pass, shape)];
  if (!entry) entry = make_convolution(pass, shape);
  return *entry;
}

}  // namespace

void convolve(ConvolutionPass pass, const ConvolutionShape& shape, void* x, float* weights, void* y) {
  if (shape.batch == 0) {  // not supported by oneDNN; the gradient of the filter is zero
    if (pass == ConvolutionPass::kFilterGradient) std::fill_n(weights, weight_count(shape), 0.0f);
    return;
  }
  if (is_pointwise(pass, shape) && !shape.bfloat16_activations) {
    return convolve_pointwise(pass, shape, static_cast<float*>(x), weights, static_cast<float*>(y));
  }
  if (is_winograd(pass, shape)) {
    return convolve_winograd(pass, shape, static_cast<float*>(x), weights, static_cast<float*>(y));
  }
  const std::lock_guard<std::mutex> lock(dnnl_mutex());
  try {
    const Convolution& convolution = cached_convolution(pass, shape);
    const std::array<void*, 3> data{x, weights, y};
    std::unordered_map<int, memory> arguments;
    for (size_t i = 0; i < data.size(); ++i) {
      arguments[convolution.names[i]] = convolution.arguments[i].prepare(data[i]);
    }
    arguments[DNNL_ARG_SCRATCHPAD] = memory(convolution.scratchpad, dnnl_engine(),
                                            scratch_memory(Scratch::kPrimitive, convolution.scratchpad.get_size()));
    convolution.primitive.execute(dnnl_stream(), arguments);
    for (size_t i = 0; i < data.size(); ++i) {
      convolution.arguments[i].finish(arguments[convolution.names[i]], data[i]);
    }
  } catch (const dnnl::error& error) {
    LOG(FATAL) << "oneDNN convolution failed: " << error.what() << " (status " << error.status << ")";
  }
}

}  // namespace graph_train
