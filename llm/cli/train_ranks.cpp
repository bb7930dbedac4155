#include "llm/cli/train_ranks.h"

#include <algorithm>

#include "llm/base/error.h"
#include "llm/cli/prediction.h"
#include "llm/train/rules.h"

namespace llm {

Options rank_options(int& ranks, Mesh& mesh, TrainOptions& train) {
  const auto sharing = [](const char* flag, int* ranks_that_share, const char* help) {
    return Option(flag, ranks_that_share, help).between(1, 256).with_default();
  };
  return {Option("--ranks", &ranks,
                 "Train on so many ranks of this host, each a GPU or a part of the CPU's threads (under mpirun or srun "
                 "each process is one)")
              .between(1, 256),
          sharing("--tensor", &mesh.tensor, "Of the ranks, so many share each matrix and the tokens of a micro-step"),
          sharing("--context-ranks", &mesh.context,
                  "Of the ranks, so many share the tokens of each sequence, for long ones (--context)"),
          Option("--context-exchange", &train.context_exchange,
                 "How these get keys and values: gather, those of whole sequences; ring, those of a rank at a time")
              .with_default(),
          sharing("--expert-ranks", &mesh.expert,
                  "Of the ranks, so many share the experts of each layer and the sequences of a micro-step"),
          sharing("--stages", &mesh.stage,
                  "Of the ranks, so many share the layers: a pipeline, whose micro-batches are the --grad-accum of a "
                  "step"),
          Option("--pipeline", &train.pipeline,
                 "The order of their passes: gpipe, 1f1b, interleaved or zero-bubble (graph --pipeline prints it)")
              .with_default(),
          Option("--chunks", &train.chunks, "Parts of the model that each stage has, where they are interleaved")
              .between(1, 64)
              .with_default()};
}

Mesh mesh_of(const Mesh& wanted, int ranks) {
  Mesh mesh = wanted;
  mesh.data = 1;
  const int each = mesh.ranks();
  if (ranks % each)
    fail_usage("a mesh of ", mesh.text(), " takes ", each, " ranks at a time, and ", ranks,
               " are no multiple of that; ", std::max(each, ranks / each * each), " would do");
  mesh.data = ranks / each;
  return mesh;
}

void share_steps(TrainOptions& o, bool resumes, int64_t context, std::ostream& notes) {
  const int64_t ranks = o.mesh.data;
  if (!o.virtual_ranks) o.virtual_ranks = ranks;
  if (o.virtual_ranks >= ranks) {
    if (o.virtual_ranks % ranks)
      notes << "note:  " << ranks << " ranks do not divide the run's " << o.virtual_ranks
            << " shares of a step: some wait for those that have one more\n";
    return;
  }
  if (!resumes) fail_usage("--virtual-ranks ", o.virtual_ranks, " are fewer than the ", ranks, " ranks");
  const int64_t samples = o.total_batch_tokens / context;
  if (samples % ranks)
    fail_usage("a step of this run has ", samples, " sequences, which ", ranks, " ranks cannot share equally; up to ",
               o.virtual_ranks, " ranks can go on with it, or a number that divides ", samples);
  const int64_t each = samples / ranks;
  o.batch = std::min(o.batch, each);
  while (each % o.batch) --o.batch;
  o.grad_accum = each / o.batch, o.virtual_ranks = ranks;
  notes << "note:  the run had fewer shares of a step than there are ranks; from here on its sums have another "
           "order, and last bits differ\n";
}

void plan_steps(TrainOptions& o, const Given& given, const ModelConfig& model, int64_t val_tokens, bool is_trained,
                Device& device, const std::string& hardware, int ranks, std::ostream& notes) {
  for (const char* flag : {"--tensor", "--context-ranks", "--context-exchange", "--expert-ranks", "--stages", "--zero",
                           "--batch", "--grad-accum", "--virtual-ranks", "--pipeline", "--chunks"})
    if (given.contains(flag)) fail_usage("--plan auto chooses ", flag, "; leave one of them out");
  TrainOptions complete = o;
  complete.virtual_ranks = 1;
  apply_rules(complete, model, val_tokens, is_trained);
  // As many sequences for each rank.
  const int64_t samples = ranks * std::max<int64_t>(1, complete.total_batch_tokens / complete.context / ranks);
  complete.total_batch_tokens = samples * complete.context;
  notes << "plan:  " << take_best_plan(o, complete, model, device, hardware, ranks) << "\n";
  o.total_batch_tokens = 0;
}

}  // namespace llm
