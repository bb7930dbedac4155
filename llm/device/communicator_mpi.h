// Ranks that are processes, on one or more hosts, by MPI (Debian's Open MPI). The names are weak: in a binary without
// MPI they are null.
#pragma once
#include <memory>

#include "llm/device/communicator.h"

namespace llm {

// Joins the processes that mpirun or srun has started, of which this one is a rank. To be called once; the communicator
// goes before the process ends. Throws Error where MPI cannot be used.
[[gnu::weak]] std::unique_ptr<Communicator> open_mpi_ranks();
// Whether the binary has MPI. If not, nothing else of this header may be called.
inline bool mpi_is_built_in() { return &open_mpi_ranks != nullptr; }

// Whether this process was started by mpirun or srun, as one of how many; 0: it was started by itself. From the
// environment, so it is known in a binary without MPI, too.
int processes_of_launcher();

}  // namespace llm
