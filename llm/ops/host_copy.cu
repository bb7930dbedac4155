// The copies of host_copy.cpp on a GPU, beside its kernels.
#include "llm/device/cuda.h"
#include "llm/device/host_copies.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {
namespace {

int transfer_of(const KernelCall& call) { return static_cast<int>(call.node.attributes.integer("transfer")); }

// From input i to output i.
void copy(const KernelCall& call, HostCopies::Direction direction) {
  HostCopies& copies = call.cuda->host_copies();
  copies.begin(direction);
  for (size_t i = 0; i < call.node.outputs.size(); ++i)
    copies.add(call.out<std::byte>(i), call.in<std::byte>(i), call.graph.tensor(call.node.outputs[i]).bytes());
  copies.end(transfer_of(call));
}

}  // namespace

void fetch_start(const KernelCall& call) { copy(call, HostCopies::Direction::from_host); }
void store_start(const KernelCall& call) { copy(call, HostCopies::Direction::to_host); }
void copy_wait(const KernelCall& call) { call.cuda->host_copies().wait(transfer_of(call)); }

}  // namespace llm::cuda
