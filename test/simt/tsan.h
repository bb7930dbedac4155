// What the test bed tells ThreadSanitizer, and nothing where the sanitizer is not there.
#pragma once
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#else
static inline void __tsan_acquire(void*) {}
static inline void __tsan_release(void*) {}
#endif
