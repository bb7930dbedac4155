#include "llm/device/communicator_threads.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "llm/base/error.h"

namespace llm {

// What the ranks see of each other. A rank counts, for each channel, the exchanges that it has started and those whose
// messages it has fetched; the others wait for these counts.
struct ThreadRanks::Shared {
  struct alignas(64) Side {
    std::atomic<uint64_t> started{0}, fetched{0};
    const Exchange* exchange = nullptr;  // valid while `started` is ahead of what the others have fetched
  };
  explicit Shared(int count) : size(count), readers(static_cast<size_t>(count)) {}

  Side& side(int rank, int channel) {
    const std::lock_guard lock(mutex);
    return sides[{channel, rank}];  // the addresses in a map stay
  }
  void fail(int rank, const std::string& why) {
    const std::lock_guard lock(mutex);
    if (failed_rank < 0) reason = why, failed_rank = rank;
  }

  [[noreturn]] void throw_lost() {
    const std::lock_guard lock(mutex);
    throw LostRank(concat("rank ", failed_rank.load(), " has failed: ", reason));
  }

  int size;
  std::mutex mutex;
  std::map<std::pair<int, int>, Side> sides;  // by channel and rank
  std::vector<std::atomic<int>> readers;      // by rank: how many others are copying from its memory
  std::string reason;
  std::atomic<int> failed_rank{-1};
};

class ThreadRanks::Engine : public Communicator {
 public:
  Engine(Shared& shared, int rank) : Communicator(rank, shared.size), shared_(shared) {}

 protected:
  using Side = Shared::Side;

  void start(int channel, Exchange& exchange) override {
    Side& mine = *sides(channel)[static_cast<size_t>(rank())];
    mine.exchange = &exchange;
    mine.started.fetch_add(1, std::memory_order_release);
  }

  void wait(int channel, Exchange& exchange) override {
    try {
      fetch(channel, exchange);
    } catch (const std::exception& e) {
      // What this rank throws will free its memory. No other rank begins to read it from here on; those that are reading
      // come to their end first.
      shared_.fail(rank(), e.what());
      while (shared_.readers[static_cast<size_t>(rank())].load() > 0) std::this_thread::yield();
      throw;
    }
  }

 private:
  // Another rank's memory stays while there is one of these.
  class Reading {
   public:
    Reading(Shared& shared, int peer) : readers_(shared.readers[static_cast<size_t>(peer)]) {
      readers_.fetch_add(1);
      if (shared.failed_rank.load() < 0) return;
      readers_.fetch_sub(1);
      shared.throw_lost();
    }
    ~Reading() { readers_.fetch_sub(1); }
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;

   private:
    std::atomic<int>& readers_;
  };

  void fetch(int channel, const Exchange& exchange) {
    const std::vector<Side*>& all = sides(channel);
    Side& mine = *all[static_cast<size_t>(rank())];
    const uint64_t number = mine.started.load(std::memory_order_relaxed);
    taken_.assign(all.size(), 0);
    for (const Message& m : exchange.receives) {
      const Side& from = *all[static_cast<size_t>(m.peer)];
      wait_for(from.started, number);
      const Reading reading(shared_, m.peer);
      const Message& sent = next_to_me(from.exchange->sends, taken_[static_cast<size_t>(m.peer)]);
      if (sent.bytes != m.bytes)
        fail("rank ", m.peer, " sent ", sent.bytes, " bytes where rank ", rank(), " expects ", m.bytes);
      std::memcpy(m.address, sent.address, m.bytes);
    }
    mine.fetched.store(number, std::memory_order_release);
    for (const Message& m : exchange.sends) wait_for(all[static_cast<size_t>(m.peer)]->fetched, number);
  }

  const std::vector<Side*>& sides(int channel) {
    const auto c = static_cast<size_t>(channel);
    if (sides_.size() <= c) sides_.resize(c + 1);
    if (sides_[c].empty())
      for (int r = 0; r < size(); ++r) sides_[c].push_back(&shared_.side(r, channel));
    return sides_[c];
  }

  const Message& next_to_me(const std::vector<Message>& sends, size_t& from) const {
    while (from < sends.size() && sends[from].peer != rank()) ++from;
    if (from == sends.size()) fail("rank ", rank(), " waits for a message that nobody sends");
    return sends[from++];
  }

  // Ranks meet within microseconds, or one of them has something longer to do: then the others give back their cores.
  void wait_for(const std::atomic<uint64_t>& count, uint64_t number) const {
    constexpr int kSpins = 2000, kYields = 200;
    for (int i = 0; count.load(std::memory_order_acquire) < number; ++i) {
      if (shared_.failed_rank.load() >= 0) shared_.throw_lost();
      if (i >= kSpins + kYields)
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      else if (i >= kSpins)
        std::this_thread::yield();
    }
  }

  Shared& shared_;
  std::vector<std::vector<Side*>> sides_;  // by channel, then rank
  std::vector<size_t> taken_;              // by peer: how far its list of messages has been read
};

ThreadRanks::ThreadRanks(int size) : shared_(std::make_unique<Shared>(size)) {}
ThreadRanks::~ThreadRanks() = default;

void ThreadRanks::run(const std::function<void(Communicator&)>& work) {
  std::exception_ptr first_error;
  const auto run_rank = [&](int rank) {
    Engine engine(*shared_, rank);
    try {
      work(engine);
    } catch (const LostRank&) {
      // It is the other rank's error that counts.
    } catch (const std::exception& e) {
      {
        const std::lock_guard lock(shared_->mutex);
        if (!first_error) first_error = std::current_exception();
      }
      shared_->fail(rank, e.what());
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 1; rank < shared_->size; ++rank) threads.emplace_back(run_rank, rank);
  run_rank(0);
  for (std::thread& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace llm
