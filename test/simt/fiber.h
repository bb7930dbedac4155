// A stack to run on, with switches by hand: for the threads of a kernel, of which a block has up to 1024.
#pragma once
#include <cstddef>

namespace llm::simt::bed {

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;         // its lowest address; null: the stack of the OS thread itself
  const void* bottom = nullptr;  // the bottom that AddressSanitizer is told
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

void make_stack(Fiber& fiber);                // once for each fiber
void prepare(Fiber& fiber, void (*entry)());  // the next switch to the fiber calls `entry`, which must never return
void switch_fiber(Fiber& from, Fiber& to);    // returns when another fiber switches to `from`
void fiber_starts(Fiber& from);               // to be called first in `entry`, with the fiber that switched to it

}  // namespace llm::simt::bed
