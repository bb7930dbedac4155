// A machine's description from measurements of its own: the time of each node of a few small training steps, and of exchanges
// between two ranks of this process.
#pragma once
#include "llm/device/device.h"
#include "llm/graph/target.h"
#include "llm/plan/hardware.h"

namespace llm {

// Takes less than 20 s. `device`: a rank with all that this machine gives one rank. What is not measured (the network, the
// price) is taken from `otherwise`.
Hardware measure_hardware(Device& device, Precision precision, const Hardware& otherwise);

}  // namespace llm
