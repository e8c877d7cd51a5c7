// The update of all parameters; kernels/ops/update/function.py has the contract.
#include "native/op.h"
#include "ops/update/update.h"

namespace graph_train {

namespace {

using namespace oneflow;  // its CHECK_..._OR_RETURN macros need the names

// One gradient of all elements, or one in the shape of each parameter.
Maybe<void> check_gradients(const user_op::InferContext* ctx, int64_t elements) {
  const int32_t gradients = ctx->input_size("gradient"), parameters = ctx->input_size("parameter");
  if (gradients == 1 && ctx->InputShape("gradient", 0) == Shape({elements})) return Maybe<void>::Ok();
  CHECK_EQ_OR_RETURN(gradients, parameters);
  for (int32_t index = 0; index < parameters; ++index) {
    CHECK_EQ_OR_RETURN(ctx->InputShape("gradient", index), ctx->InputShape("parameter", index));
  }
  return Maybe<void>::Ok();
}

// The clipping norm and a group for each parameter.
Maybe<void> check_floats(const user_op::InferContext* ctx) {
  const auto& floats = floats_of(ctx);
  CHECK_EQ_OR_RETURN(static_cast<int64_t>(floats.size()), 1 + ctx->input_size("parameter"));
  for (size_t index = 1; index < floats.size(); ++index) {
    CHECK_OR_RETURN(floats[index] == 0 || floats[index] == 1 || floats[index] == 2);
  }
  return Maybe<void>::Ok();
}

template<bool kAdam>
Maybe<void> infer_shape(user_op::InferContext* ctx) {
  CHECK_EQ_OR_RETURN(ctx->InputShape("hyper", 0), Shape({kHyperSize}));
  int64_t elements = 0;
  for (int32_t index = 0; index < ctx->input_size("parameter"); ++index) {
    elements += ctx->InputShape("parameter", index).elem_cnt();
  }
  JUST(check_gradients(ctx, elements));
  JUST(check_floats(ctx));
  for (const char* name : {"ema", "gradient_sum", "first_moment"}) {
    CHECK_EQ_OR_RETURN(ctx->InputShape(name, 0), Shape({elements}));
  }
  const auto rule = static_cast<Rule>(integers_of(ctx).at(0));
  if (kAdam) {
    CHECK_OR_RETURN(rule == Rule::kAdam || rule == Rule::kAdamW);
    CHECK_EQ_OR_RETURN(ctx->InputShape("second_moment", 0), Shape({elements}));
  } else {
    CHECK_OR_RETURN(rule == Rule::kSgd);
  }
  ctx->SetOutputShape("out", 0, Shape({2}));
  return Maybe<void>::Ok();
}

// The state is replicated on every device; partial gradients are summed before this op.
const Op update_sgd_op("graph_train_update_sgd",
                       {"parameter", "gradient_sum", "first_moment", "ema", "gradient", "hyper"}, infer_shape<false>,
                       user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast, all_float,
                       {"parameter", "gradient_sum", "first_moment", "ema"});

const Op update_adam_op("graph_train_update_adam",
                        {"parameter", "gradient_sum", "first_moment", "ema", "second_moment", "gradient", "hyper"},
                        infer_shape<true>, user_op::GetSbpFnUtil::DefaultBroadcastToBroadcast, all_float,
                        {"parameter", "gradient_sum", "first_moment", "ema", "second_moment"});

}  // namespace

}  // namespace graph_train
