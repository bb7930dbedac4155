// A second stack to run on, by hand: for kernels' threads, of which a block has up to 1024.
#pragma once
#include <cstddef>

namespace llm::simt::bed {

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;         // its lowest address; null: the stack of the OS thread itself
  const void* bottom = nullptr;  // what AddressSanitizer knows of it
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

void make_stack(Fiber& fiber);                // once
void prepare(Fiber& fiber, void (*entry)());  // the next switch to it calls `entry`, which must never return
void switch_fiber(Fiber& from, Fiber& to);    // returns when somebody switches to `from`
void fiber_starts(Fiber& from);               // first thing in `entry`, with the fiber that switched to it

}  // namespace llm::simt::bed
