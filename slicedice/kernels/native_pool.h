// Arrays that XLA hands to a kernel, and the threads it lends.

#ifndef SLICEDICE_NATIVE_POOL_H_
#define SLICEDICE_NATIVE_POOL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace slicedice {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// Calls function(i) for each i below `count`, on the pool's threads and this one.
template <typename Function>
void ForEach(ffi::ThreadPool& pool, int64_t count, Function function) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  // Threads that come when all is done still look at the counter, after this function has returned.
  auto state = std::make_shared<State>();
  auto work = [state, count, function] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      function(i);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 1, helpers = std::min(pool.num_threads(), count); i < helpers; ++i) pool.Schedule([work] { work(); });
  work();
  // What is not done yet has been begun by another thread, so it ends without anybody's help.
  while (state->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

constexpr int64_t kAtOnce = 1 << 14;  // numbers of a part; those of a few arrays fit a core's cache

// Calls function(begin, count) for parts of `total` numbers, of which each is one thread's.
template <typename Function>
void ForParts(ffi::ThreadPool& pool, int64_t total, Function function) {
  ForEach(pool, (total + kAtOnce - 1) / kAtOnce,
          [&](int64_t part) { function(part * kAtOnce, std::min(kAtOnce, total - part * kAtOnce)); });
}

}  // namespace slicedice

#endif
