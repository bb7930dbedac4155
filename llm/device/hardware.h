// What a plan knows of a machine: few numbers, from data sheets and measured (bench --hardware-out). A description is a JSON file
// with "name", "sources", "device" and a member for each number below that is not 0; those in data/hardware/ are part of the
// program. A member "published" has numbers that stand in their place where step times of another program are predicted,
// to which they were fitted (scripts/fit_hardware.py): its kernels, what its host does meanwhile, and its network.
#pragma once
#include <array>
#include <map>
#include <string>
#include <vector>

#include "llm/base/names.h"

namespace llm {

// by_cost: the most expensive stage costs as little as can be. equal: as many each. as_they_come: each stage takes layers until
// it and those before have more than their share of all parameters but the embedding's; the head is the last one's.
enum class LayerCuts { by_cost, equal, as_they_come };
template <>
inline constexpr std::array kNames<LayerCuts> = {"by_cost", "equal", "as_they_come"};

struct Hardware {
  std::string name;
  std::vector<std::string> sources;
  bool cuda = true;  // ranks are GPUs; else teams of CPU threads
  // How the program, whose step times the numbers were fitted to, gives the stages of a pipeline their layers. It matters
  // where that program's rows are predicted again; `train` cuts layers by cost.
  LayerCuts cuts = LayerCuts::by_cost;
  // The bytes that it keeps on a GPU; 0: not known. Of each parameter of the rank: those that data-parallel ranks divide
  // from ZeRO 1 on (`divided`), and the others. Of each layer, micro-batch in flight and token: for each channel, for each
  // channel of the MLP's middle; and, where there is no pipeline, for each channel whatever the tensor-parallel size
  // (`gathered`). For each logit of a micro-batch.
  double parameter_bytes = 0, divided_bytes = 0, channel_bytes = 0, hidden_bytes = 0, gathered_bytes = 0,
         logit_bytes = 0;

  // Of a rank.
  double memory_gib = 0, reserved_gib = 0;  // what there is, and what contexts and libraries take of it
  double peak_tflops = 0;                   // dense, bf16 on a GPU, fp32 on a CPU
  double price = 0;                         // of an hour
  // Products of (m, k) and (k, n) take 2 m n k / (product_efficiency peak) (1 + product_depth / k).
  double product_efficiency = 1, product_depth = 0;
  // Other operations, attention's, take 1 / (attention_efficiency peak) (1 + attention_depth / head size).
  double attention_efficiency = 1, attention_depth = 0;
  // Beside the products of the head, for each of its results, where these pass through memory; `shared`: of a head that
  // tensor-parallel ranks share.
  double logit_ps = 0, shared_logit_ps = 0;
  double bandwidth_gbs = 0;              // bytes that kernels read and write
  double cached_gbs = 0, cache_mib = 0;  // the same of kernels whose tensors together are no larger; 0: not known
  double kernel_us = 0;                  // of a kernel's time, what does not depend on its size
  // Of the nodes of an op, where they were measured; those numbers above stand for the other ops: picoseconds of a FLOP and
  // of a byte, read or written, and microseconds of each node.
  struct OpTime {
    double flop_ps = 0, byte_ps = 0, node_us = 0;
  };
  std::map<std::string, OpTime> ops;      // by kind_of() the node (llm/plan/pass_time.h)
  double launch_us = 0;                   // the host's time for each kernel, while the device works on those before
  double micro_step_ms = 0, step_ms = 0;  // what a micro-step and a step take whatever the model

  // Of the links. Ranks with neighbouring numbers are on one node.
  double ranks_a_node = 1;
  double inside_gbs = 0, between_gbs = 0;  // that a rank sends; between nodes: through its own share of the network
  double reduce_gbs = 0;                   // between nodes at a step's end; 0: as within a pass
  double inside_latency_us = 0, between_latency_us = 0;  // of an exchange, for each rank of its group
  double reduce_latency_us = 0;                          // at a step's end, for each node of a group that several have
  double exchange_host_us = 0;                           // the host's time for an exchange within a pass
  // And for each rank of its group, beside the latency, what it takes longer within a pipeline whose messages go from node to
  // node: exchanges and messages then take turns on the device. Hidden by kernels that run meanwhile.
  double beside_messages_us = 0;
  // The share of the kernels between an exchange's start and its wait that hides it; `zero`: where ranks divide the state.
  double hidden = 0, hidden_zero = 0;
  // Exchanges stall on `stall_nodes` nodes or more; in pipelines also where as many data-parallel ranks as
  // `stall_divided_nodes`, and as many nodes, divide the optimizer's state, and where tensor-parallel ranks are on
  // `stall_tensor_nodes`; and where a published program has no memory left. Each message of a pipeline and each micro-step
  // without one takes so much longer. 0: none do.
  double stall_nodes = 0, stall_divided_nodes = 0, stall_tensor_nodes = 0, stall_ms = 0;
  double host_gbs = 0;  // between a rank and its host's memory, for optimizer state; 0: it is the same memory
};

// `name`: of a description that is part of the program, or a file's path. Throws UsageError that lists the names where it is
// neither, Error for a file that is none.
Hardware hardware_of(const std::string& name, bool as_published = false);
std::vector<std::string> hardware_names();
// Of each of so many ranks that share a CPU: the description is that of one rank which has it all.
Hardware shared_by(const Hardware& cpu, int ranks);
// The text of the file that describes `hardware`.
std::string hardware_json(const Hardware& hardware);

}  // namespace llm
