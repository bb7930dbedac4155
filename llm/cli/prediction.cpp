#include "llm/cli/prediction.h"

#include <algorithm>
#include <cctype>

#include "llm/base/bytes.h"
#include "llm/base/error.h"
#include "llm/device/cuda.h"
#include "llm/plan/search.h"

namespace llm {
namespace {

// The description of a GPU, by what its driver calls it.
std::string description_of(const std::string& device) {
  std::string text;
  for (const char c : device) text += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const auto has = [&](const char* word) { return text.find(word) != text.npos; };
  return has("b200")   ? "b200"
         : has("5090") ? "rtx5090"
         : has("4090") ? "rtx4090"
         : has("a100") ? has("80gb") ? "a100-80" : "a100-40"
                       : "h100-sxm";
}

Hardware hardware_here(const std::string& hardware, Device& device, int ranks_here) {
  const CudaDevice* const cuda = device.cuda();
  const Hardware h = hardware_of(!hardware.empty() ? hardware : cuda ? description_of(cuda->properties().name) : "cpu");
  return h.cuda ? h : shared_by(h, ranks_here);
}

Job job_of(const ModelConfig& model, const TrainOptions& options, Device& device) {
  return {.model = model,
          .context = options.context,
          .target = target_on(device, options.dtype),
          .recipe = options,
          .step_samples = options.total_batch_tokens / options.context};
}

}  // namespace

double predicted_step_ms(const ModelConfig& model, const TrainOptions& options, Device& device, double peak_gflops,
                         const std::string& hardware, int ranks_here) {
  Hardware h = hardware_here(hardware, device, ranks_here);
  if (hardware.empty() && !h.cuda) {
    const double factor = peak_gflops * 1e-3 / h.peak_tflops;
    h.bandwidth_gbs *= factor, h.cached_gbs *= factor;
    h.peak_tflops = peak_gflops * 1e-3;
  }
  const Job job = job_of(model, options, device);
  Layout layout;
  layout.mesh = options.mesh, layout.zero = static_cast<int>(options.zero), layout.batch = options.batch;
  // A rank that takes the part of several virtual ranks makes the micro-steps of each.
  const int64_t shares = (options.virtual_ranks + layout.mesh.data - 1) / layout.mesh.data;
  layout.grad_accum = options.grad_accum * std::max<int64_t>(1, shares);
  layout.pipeline = options.pipeline, layout.chunks = static_cast<int>(options.chunks);
  layout.exchange = options.context_exchange;
  layout.offload = options.offload == Offload::optimizer;
  return 1e3 * StepTimer(job, h).time(layout).total();
}

std::string take_best_plan(TrainOptions& o, const TrainOptions& complete, const ModelConfig& model, Device& device,
                           const std::string& hardware, int ranks) {
  const Hardware h = hardware_here(hardware, device, ranks);
  const Job job = job_of(model, complete, device);
  const Plan best = search(job, h, ranks, Objective::time, 1, false).best[0];
  const Layout& l = best.layout;
  o.mesh = l.mesh, o.zero = l.zero, o.batch = l.batch, o.grad_accum = l.grad_accum, o.virtual_ranks = l.mesh.data;
  o.pipeline = l.pipeline, o.chunks = l.chunks, o.context_exchange = l.exchange;
  if (l.offload) o.offload = Offload::optimizer;
  if (!o.memory_budget) o.memory_budget = best.budget;
  return concat(l.mesh.text(), ", --zero ", l.zero, " --batch ", l.batch, " --grad-accum ", l.grad_accum,
                l.is_pipeline() ? concat(" --pipeline ", name_of(l.pipeline)) : std::string(),
                l.exchange == ContextExchange::ring ? " --context-exchange ring" : "",
                l.offload ? " --offload optimizer" : "", "; ", format_bytes(best.memory.device()), " a rank, ",
                static_cast<int64_t>(best.time.total() * 1e3 + 0.5), " ms a step by the description of ", h.name);
}

}  // namespace llm
