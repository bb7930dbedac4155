// What ranks tell each other: bytes. A rank is one device of a run, a GPU or a team of CPU threads; a communicator
// carries messages between the memories of ranks, in one process or in many. It never computes: sums are made by the
// program's own kernels, in an order of their own (llm/base/tree_sum.h), so the bits of a result do not depend on the
// engine that carries them. The engines:
//   communicator_threads.h   ranks that are threads of one process, on CPUs
//   communicator_mpi.h       ranks that are processes, on one or more hosts
//   communicator_nccl.h      GPUs, on one or more hosts
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace llm {

struct Message {
  int peer;  // the rank that it goes to or comes from; it may be the rank itself
  void* address;
  size_t bytes;
};

// Messages that are under way together. The messages from one rank to another arrive in the order in which both list
// them, and both list the same sizes.
struct Exchange {
  std::vector<Message> sends, receives;
};

// Used by one thread at a time.
class Communicator {
 public:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // The empty lists of a channel, to be filled for its next start(). Channels number what is under way at a time; all
  // ranks use the same ones in the same order.
  Exchange& prepare(int channel);
  // Begins to send and receive, after the work that was handed over to the device so far.
  void start(int channel);
  // Work that is handed over later finds what was to be received, and may overwrite what was to be sent. Throws Error
  // when a rank has failed or is lost.
  void wait(int channel);

  // Told when this rank ends by an error, so that the others need not wait for it.
  virtual void fail_with(const std::string& /*reason*/) {}

  // What this rank has sent to others so far, and how long it has waited for them: the part of the exchange that no work
  // hides. (A GPU's waits are its own; the host sees none.)
  uint64_t bytes_sent() const { return bytes_sent_; }
  double seconds_waited() const { return seconds_waited_; }

 protected:
  virtual void start(int channel, Exchange& exchange) = 0;
  virtual void wait(int channel, Exchange& exchange) = 0;

 private:
  int rank_, size_;
  uint64_t bytes_sent_ = 0;
  double seconds_waited_ = 0;
  std::deque<Exchange> exchanges_;  // by channel; in a deque they stay where they are
};

// For the host's memory, through communicators of ranks whose memory the host can address. All ranks call them in the
// same order; they use the channel 0.
inline constexpr int kHostChannel = 0;
// all (size, bytes): row r is what rank r gave as `mine` (bytes).
void all_gather(Communicator& ranks, const void* mine, size_t bytes, void* all);
void broadcast(Communicator& ranks, int root, void* data, size_t bytes);
// Texts of any length, by rank.
std::vector<std::string> all_gather(Communicator& ranks, const std::string& mine);
bool any(Communicator& ranks, bool mine);
void barrier(Communicator& ranks);

}  // namespace llm
