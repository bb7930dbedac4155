#include "llm/cli/ranks.h"

#include <cstdlib>
#include <iostream>

#include "llm/base/error.h"
#include "llm/base/mapped_file.h"
#include "llm/base/random.h"
#include "llm/device/communicator_mpi.h"
#include "llm/device/communicator_threads.h"

namespace llm {
namespace {

int from_environment(std::initializer_list<const char*> names, int otherwise) {
  for (const char* name : names)
    if (const char* const text = std::getenv(name)) return std::atoi(text);
  return otherwise;
}

void run_on_processes(const std::function<void(const RankPlace&)>& work) {
  if (!mpi_is_built_in())
    fail_usage(
        "started as ", processes_of_launcher(),
        " processes, but this binary was built without MPI; `make MPI=1` builds it with (Debian: libopenmpi-dev)");
  const std::unique_ptr<Communicator> ranks = open_mpi_ranks();
  const RankPlace place = {ranks.get(), from_environment({"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"}, 0),
                           from_environment({"OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"}, 1)};
  try {
    work(place);
  } catch (const LostRank&) {
    throw;
  } catch (const UsageError& e) {
    // All ranks have agreed on it. It is said before the others leave, for then the launcher ends this process.
    std::cerr << "train_gpt: " << (e.value.empty() ? "" : "--") << e.what() << "\n" << std::flush;
    throw LostRank(e.what(), 2);
  } catch (const std::exception& e) {
    std::cerr << "train_gpt: rank " << ranks->rank() << ": " << e.what() << "\n" << std::flush;
    ranks->fail_with(e.what());
    throw LostRank(e.what());
  }
}

// 64 bits that differ where two binaries do.
uint64_t hash_of_binary() {
  const MappedFile binary("/proc/self/exe");
  uint64_t hash = kHashStart;
  const std::span<const std::byte> bytes = binary.bytes();
  for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
    uint32_t word;
    std::memcpy(&word, bytes.data() + i, 4);
    hash = hash_step(hash, word);
  }
  return hash;
}

}  // namespace

void run_on_ranks(int ranks, const std::function<void(const RankPlace&)>& work) {
  if (const int processes = processes_of_launcher(); processes > 1) {
    if (ranks && ranks != processes)
      fail_usage("--ranks ", ranks, ", but there are ", processes, " processes, each of which is a rank; leave it out");
    return run_on_processes(work);
  }
  if (ranks <= 1) return work({});
  ThreadRanks(ranks).run([&](Communicator& all) { work({&all, all.rank(), all.size()}); });
}

void in_turn(const RankPlace& place, const std::function<void()>& work) {
  if (!place.ranks) return work();
  for (const bool first : {true, false}) {
    std::exception_ptr error;
    std::string said;
    if (place.is_first() == first) try {
        work();
      } catch (const LostRank&) {
        throw;
      } catch (const UsageError& e) {
        error = std::current_exception(), said = concat("2", e.what());
      } catch (const std::exception& e) {
        error = std::current_exception(), said = concat("1", e.what());
      }
    const std::vector<std::string> all = all_gather(*place.ranks, said);
    for (size_t rank = 0; rank < all.size(); ++rank) {
      if (all[rank].empty()) continue;
      if (static_cast<int>(rank) == place.rank()) std::rethrow_exception(error);
      throw LostRank(concat("rank ", rank, ": ", all[rank].substr(1)), all[rank][0] - '0');
    }
  }
}

void check_alike(const RankPlace& place, const std::string& text) {
  if (!place.ranks) return;
  const std::string mine = concat(hash_of_binary(), " ", text);
  const std::vector<std::string> all = all_gather(*place.ranks, mine);
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    const std::string wrong = concat("rank ", rank, " is not like rank 0: ",
                                     all[rank].substr(0, all[rank].find(' ')) != all[0].substr(0, all[0].find(' '))
                                         ? "it is another binary"
                                         : "it has other flags or data",
                                     "; start the same command on all hosts, with the same files");
    if (place.is_first()) fail_usage(wrong);
    throw LostRank(wrong, 2);
  }
}

int64_t sum_over_ranks(const RankPlace& place, int64_t mine) {
  if (!place.ranks) return mine;
  std::vector<int64_t> all(static_cast<size_t>(place.count()));
  all_gather(*place.ranks, &mine, sizeof mine, all.data());
  int64_t sum = 0;
  for (const int64_t each : all) sum += each;
  return sum;
}

}  // namespace llm
