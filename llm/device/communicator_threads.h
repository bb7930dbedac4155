// Ranks that are threads of one process: a message is one copy, from the sender's memory to the receiver's, made by the
// receiver when it waits.
#pragma once
#include <functional>
#include <memory>

#include "llm/device/communicator.h"

namespace llm {

class ThreadRanks {
 public:
  explicit ThreadRanks(int size);
  ~ThreadRanks();
  ThreadRanks(const ThreadRanks&) = delete;
  ThreadRanks& operator=(const ThreadRanks&) = delete;

  // Calls work(communicator) on a thread for each rank, rank 0's on the caller's, and returns when all have returned. If
  // one throws, the others' waits throw, too; the first error is thrown on.
  void run(const std::function<void(Communicator&)>& work);

 private:
  class Engine;
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace llm
