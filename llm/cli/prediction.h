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

// Sets, in `chosen`, for the fastest plan of the run on so many ranks of this host, what the command line has not given: mesh,
// ZeRO, micro-steps, schedule, memory budget and offload. `complete`: the run's options with the rules applied. Returns what was
// chosen, in words. All ranks choose the same, for nothing is measured. Throws UsageError where nothing fits.
std::string take_best_plan(TrainOptions& chosen, const TrainOptions& complete, const ModelConfig& model, Device& device,
                           const std::string& hardware, int ranks);

}  // namespace llm
