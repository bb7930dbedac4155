#include "llm/train/options.h"

namespace llm {

Parametrization parametrization_of(const TrainOptions& o) {
  return {.complete_p = o.parametrization == RateScaling::completep,
          .zero_projections = o.zero_projections.value_or(false)};
}

OptimizerOptions optimizer_of(const TrainOptions& o) {
  return {.beta1 = o.beta1,
          .beta2 = o.beta2,
          .epsilon = o.epsilon,
          .weight_decay = o.weight_decay,
          .grad_clip = o.grad_clip,
          .kind = o.optimizer.value_or(OptimizerKind::adamw),
          .guard_deviations = o.guard_deviations,
          .offload = o.offload == Offload::optimizer};
}

RecipeOptions recipe_of(const TrainOptions& o, int32_t end_of_text) {
  return {.z_loss = o.z_loss,
          .dropout = o.dropout,
          .end_of_text = o.document_mask ? end_of_text : -1,
          .balance_weight = o.balance_weight,
          .router_z_loss = o.router_z_loss,
          .parametrization = parametrization_of(o)};
}

}  // namespace llm
