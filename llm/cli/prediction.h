// What `plan` would have said of a run: its step time on this machine.
#pragma once
#include <string>

#include "llm/device/device.h"
#include "llm/plan/layout.h"

namespace llm {

// Milliseconds of a step. `hardware`: a description's name or file; empty: that of a machine like this one, with the peak that
// was measured here. `ranks_here`: those that share this host's CPU.
double predicted_step_ms(const ModelConfig& model, const TrainOptions& options, Device& device, double peak_gflops,
                         const std::string& hardware, int ranks_here);

}  // namespace llm
