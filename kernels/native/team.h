// The threads of one call: one OpenMP team, which meets at barriers that spin before they give up the processor.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <omp.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace v32 {

static inline void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

extern "C" int sched_yield(void);

struct Range {
    int64_t begin, end;
};

class Team {
  public:
    explicit Team(int size) : size_(size) {}

    // Everybody waits for everybody; afterwards the counters of `next` start again.
    void meet() {
        if (size_ == 1) return void(counter_.store(0, std::memory_order_relaxed));
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            counter_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
            if (spins < 4000) pause_briefly();
            else sched_yield();
        }
    }

    // The next piece of work of this phase, each given out once; `meet` ends the phase.
    int64_t next() { return counter_.fetch_add(1, std::memory_order_relaxed); }

    // What thread `rank` does of `size` equal pieces, cut at multiples of `unit`.
    Range share(int rank, int64_t size, int64_t unit) const {
        const int64_t units = (size + unit - 1) / unit;
        return {std::min(units * rank / size_ * unit, size), std::min(units * (rank + 1) / size_ * unit, size)};
    }

    int size() const { return size_; }

  private:
    const int size_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
    alignas(64) std::atomic<int64_t> counter_{0};
};

// Run `work(team, rank)` on a team of up to `limit` threads.
template <class Work>
static void run(int64_t limit, Work work) {
    const int size = (int)std::max<int64_t>(1, std::min<int64_t>(limit, omp_get_max_threads()));
    if (size == 1) {
        Team team(1);
        return work(team, 0);
    }
    Team* team = nullptr;
#pragma omp parallel num_threads(size)
    {
        // OpenMP may give fewer threads than asked for.
#pragma omp single
        team = new Team(omp_get_num_threads());
        work(*team, omp_get_thread_num());
#pragma omp barrier
#pragma omp single
        delete team;
    }
}

}  // namespace v32
