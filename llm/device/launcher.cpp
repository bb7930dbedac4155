#include <cstdlib>

#include "llm/device/communicator_mpi.h"

namespace llm {

int processes_of_launcher() {
  // Open MPI's mpirun; MPICH's and Intel's. Slurm's srun says PMIX_RANK where it serves MPI, and how many in
  // SLURM_NTASKS; without PMIX_RANK a process in a Slurm job may be an ordinary one.
  const char* const served_by_slurm = std::getenv("PMIX_RANK");
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", served_by_slurm ? "SLURM_NTASKS" : nullptr})
    if (const char* const size = name ? std::getenv(name) : nullptr) return std::atoi(size);
  return 0;
}

}  // namespace llm
