// Without the C++ bindings, which MPI 3 removed.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>

#include "llm/base/error.h"
#include "llm/device/communicator_mpi.h"

namespace llm {
namespace {

void check(int status, const char* what) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(status, text, &length);
  fail("MPI: ", what, ": ", std::string(text, static_cast<size_t>(length)));
}

class MpiRanks : public Communicator {
 public:
  MpiRanks(int rank, int size) : Communicator(rank, size) {}
  ~MpiRanks() override {
    if (!failed_) MPI_Finalize();
  }

  // MPI has no way to withdraw from what the others wait for: all processes of the run end.
  void fail_with(const std::string&) override {
    failed_ = true;
    MPI_Abort(MPI_COMM_WORLD, 1);
  }

 protected:
  void start(int channel, Exchange& exchange) override {
    std::vector<MPI_Request>& requests = requests_of(channel);
    requests.clear();
    for (const Message& m : exchange.receives)
      for_pieces(m, [&](std::byte* from, int bytes) {
        check(MPI_Irecv(from, bytes, MPI_BYTE, m.peer, channel, MPI_COMM_WORLD, &requests.emplace_back()), "receiving");
      });
    for (const Message& m : exchange.sends)
      for_pieces(m, [&](const std::byte* from, int bytes) {
        check(MPI_Isend(from, bytes, MPI_BYTE, m.peer, channel, MPI_COMM_WORLD, &requests.emplace_back()), "sending");
      });
  }
  void wait(int channel, Exchange&) override {
    std::vector<MPI_Request>& requests = requests_of(channel);
    check(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE), "waiting");
  }

 private:
  // MPI counts in int.
  template <class Use>
  static void for_pieces(const Message& m, Use use) {
    constexpr size_t kMost = size_t{1} << 30;
    for (size_t done = 0; done < m.bytes; done += kMost)
      use(static_cast<std::byte*>(m.address) + done, static_cast<int>(std::min(kMost, m.bytes - done)));
  }
  std::vector<MPI_Request>& requests_of(int channel) {
    const auto c = static_cast<size_t>(channel);
    if (requests_.size() <= c) requests_.resize(c + 1);
    return requests_[c];
  }

  std::vector<std::vector<MPI_Request>> requests_;  // by channel
  bool failed_ = false;
};

}  // namespace

std::unique_ptr<Communicator> open_mpi_ranks() {
  int rank = 0, size = 0, provided = 0;
  // Only the thread that drives a rank calls MPI.
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "starting");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return std::make_unique<MpiRanks>(rank, size);
}

}  // namespace llm
