// The one thread that the engine lives in, and the way to it from the threads of the connections.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "llm/infer/engine.h"
#include "llm/serve/metrics.h"

namespace llm {

// What happens to the sequences of a request, for the thread that waits for it.
struct EngineEvent {
  enum class Kind { token, end, refused, failed };
  Kind kind;
  size_t sequence = 0;  // of the request's
  TokenOutput token;
  Finish finish = Finish::stop;
  std::string error;  // of refused (the engine cannot do this request) and failed
};

class EngineThread {
 public:
  // Takes one thread's worth of work from `engine`, which nobody else may use until this object is gone. `most_waiting`:
  // with so many sequences in the queue no more requests are taken.
  EngineThread(Engine& engine, Metrics& metrics, int64_t most_waiting);
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // A request's sequences. When it is destroyed, those that still run are cancelled.
  class Ticket {
   public:
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    // The next events, in their order; none after `timeout`.
    std::deque<EngineEvent> wait(std::chrono::milliseconds timeout);
    // No more of this sequence is wanted.
    void cancel(size_t sequence);

   private:
    friend class EngineThread;
    struct Events;
    explicit Ticket(EngineThread& thread) : thread_(thread) {}
    EngineThread& thread_;
    uint64_t number_ = 0;
    std::shared_ptr<Events> events_;
  };
  // Null where the queue is full, or the thread ends.
  std::unique_ptr<Ticket> submit(std::vector<Request> sequences);

  // Breaks off what still runs: its waiters get a failure.
  void stop();

  // As of the last step, with what has arrived since.
  EngineStatistics statistics() const;

 private:
  struct Job;
  struct Message {
    uint64_t job;
    std::unique_ptr<Job> submitted;  // null: cancel
    size_t sequence = 0;             // of a job to cancel; SIZE_MAX: all
  };
  void run();
  void handle(Message& message);
  void start(uint64_t number, std::unique_ptr<Job> job);
  void cancel(uint64_t number, size_t sequence);
  void end_sequence(Job& job);
  void send(Message message);

  Engine& engine_;
  Metrics& metrics_;
  const int64_t most_waiting_;
  std::unordered_map<uint64_t, std::unique_ptr<Job>> jobs_;  // of the engine's thread
  std::vector<uint64_t> ended_;                              // jobs that are to be removed after a step

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable arrived_;
  std::vector<Message> messages_;
  EngineStatistics statistics_;
  int64_t arriving_ = 0;  // sequences in messages_
  uint64_t next_ = 1;
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace llm
