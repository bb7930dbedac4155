#include "test/simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "test/simt/bed.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// llm_switch_stack(void** from, void* to): pushes the registers that a function must keep, changes the stack, pops
// them.
#if defined(__x86_64__)
asm(R"(
.text
.type llm_switch_stack, @function
llm_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size llm_switch_stack, . - llm_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
.text
.type llm_switch_stack, %function
llm_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size llm_switch_stack, . - llm_switch_stack
)");
#else
#error "the test bed knows how to switch stacks on x86-64 and AArch64"
#endif
extern "C" void llm_switch_stack(void** from, void* to);

namespace llm::simt::bed {
namespace {

// AddressSanitizer makes frames larger. Pages take memory only when they are touched.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kGuardBytes = 4096 * 16;  // a multiple of the page size, even of pages of 64 KiB

}  // namespace

void make_stack(Fiber& fiber) {
  void* memory = ::mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED || ::mprotect(memory, kGuardBytes, PROT_NONE) != 0) std::abort();
  fiber.stack = static_cast<char*>(memory) + kGuardBytes;
  fiber.bottom = fiber.stack;
  fiber.bytes = kStackBytes;
}

void prepare(Fiber& fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // a fiber may have been left in the middle of a function
  fiber.fake_stack = nullptr;
#endif
  auto* top = reinterpret_cast<uint64_t*>(fiber.stack + kStackBytes);
#if defined(__x86_64__)
  // As after a call: the stack is 8 bytes off a multiple of 16, and the (null) return address lies on top.
  *--top = 0;
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = 0;
  top[11] = reinterpret_cast<uint64_t>(entry);
#endif
  fiber.stack_pointer = top;
}

void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
  llm_switch_stack(&from.stack_pointer, to.stack_pointer);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
  llm_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
}

void fiber_starts([[maybe_unused]] Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.bytes);
#endif
}

}  // namespace llm::simt::bed
