// Ranks that are GPUs, of one host or several, by NVIDIA's NCCL. The names are weak: in a binary without NCCL they are
// null.
#pragma once
#include <memory>

#include "llm/device/communicator.h"
#include "llm/device/cuda.h"

namespace llm {

// Messages between the memories of devices, on a stream of their own beside the kernels. All ranks of `host`, through
// which they find each other, call it with their devices at the same time. `device` outlives the communicator.
// `by_thread`: a thread hands the messages over, so that the host goes on where NCCL waits for another rank to come.
[[gnu::weak]] std::unique_ptr<Communicator> open_nccl_ranks(CudaDevice& device, Communicator& host,
                                                            bool by_thread = false);
// Whether the binary has NCCL. If not, nothing else of this header may be called.
inline bool nccl_is_built_in() { return &open_nccl_ranks != nullptr; }

}  // namespace llm
