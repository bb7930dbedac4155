// The rotary positions of a config.json.
#pragma once
#include <string>

#include "llm/model/config.h"
#include "llm/model/config_keys.h"

namespace llm {

// Sets all of a config that is about rotary positions but magnitudes of queries (rope_theta, rope_scaling beside it,
// partial_rotary_factor; transformers 5 has all of them in rope_parameters). Its context, heads and head size are set. `type`:
// the model_type, whose usual values are those that keys are given which a file lacks.
void read_rope(const Keys& keys, const std::string& type, ModelConfig& config);

}  // namespace llm
