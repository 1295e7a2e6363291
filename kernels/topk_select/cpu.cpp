// Exact top-k: a histogram of the scores' leading bits finds the border, only what falls on it is looked at closely.
#pragma once

#include <algorithm>
#include <vector>

#include "../native/team.h"
#include "../native/vector.h"

namespace v32 {

// Unsigned numbers in the order of the scores; both zeros are one, NaN is below everything.
static inline uint32_t rank_of(float score) {
    uint32_t bits;
    const float plain = score + 0.0f;
    memcpy(&bits, &plain, sizeof bits);
    if (score != score) return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

class TopK {
  public:
    // emit(position), ascending, for the k best of `size` > k scores; of equal scores the lower position wins.
    template <class Emit>
    void select(const float* scores, int64_t size, int64_t k, Emit emit) {
        histogram_.assign(1 << BITS, 0);
        for (int64_t i = 0; i < size; ++i) ++histogram_[rank_of(scores[i]) >> SHIFT];
        int64_t above = 0, bucket = (1 << BITS) - 1;
        while (above + histogram_[bucket] < k) above += histogram_[bucket--];
        border_.clear();
        for (int64_t i = 0; i < size; ++i)
            if (const uint32_t rank = rank_of(scores[i]); rank >> SHIFT == (uint32_t)bucket) border_.push_back(rank);
        const int64_t wanted = k - above;
        std::nth_element(border_.begin(), border_.begin() + (wanted - 1), border_.end(), std::greater<uint32_t>());
        const uint32_t limit = border_[wanted - 1];
        int64_t equal = wanted;
        for (int64_t i = 0; i < wanted; ++i) equal -= border_[i] > limit;
        for (int64_t i = 0; i < size; ++i) {
            const uint32_t rank = rank_of(scores[i]);
            if (rank > limit || (rank == limit && equal-- > 0)) emit(i);
        }
    }

  private:
    static constexpr int BITS = 12, SHIFT = 32 - BITS;
    std::vector<int32_t> histogram_;
    std::vector<uint32_t> border_;
};

}  // namespace v32

extern "C" void v32_topk_select(const float* scores, const int64_t* visible, int64_t queries, int64_t keys, int64_t k,
                                int64_t* positions) {
    using namespace v32;
    run(queries * keys / 50000 + 1, [&](Team& team, int) {
        TopK top;
        for (int64_t t; (t = team.next()) < queries;) {
            const float* row = scores + t * keys;
            int64_t* out = positions + t * k;
            int64_t count = 0;
            const int64_t seen = std::min(visible[t], keys);
            if (seen > k) top.select(row, seen, k, [&](int64_t i) { out[count++] = i; });
            else
                for (; count < seen; ++count) out[count] = count;
            std::stable_sort(out, out + count, [&](int64_t a, int64_t b) { return rank_of(row[a]) > rank_of(row[b]); });
            std::fill(out + count, out + k, -1);
        }
    });
}
