// Exact top-k: a histogram of the scores' leading bits finds the border; what lies below it is passed a vector at a time.
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

// The same for a vector of scores.
static inline Words ranks_of(Floats scores) {
    const Words bits = (Words)(scores + 0.0f);
    const Words rank = bits ^ ((Words)((Ints)bits >> 31) | 0x80000000u);
    return scores == scores ? rank : Words{};
}

class TopK {
  public:
    // emit(position), ascending, for the k best of `size` > k scores; of equal scores the lower position wins.
    template <class Emit>
    void select(const float* scores, int64_t size, int64_t k, Emit emit) {
        rank(scores, size);
        int64_t above = 0, bucket = (1 << BITS) - 1;
        while (above + histogram_[bucket] < k) above += histogram_[bucket--];
        collect((uint32_t)bucket << SHIFT, size);
        border_.clear();
        for (int64_t i : places_)
            if (ranks_[i] >> SHIFT == (uint32_t)bucket) border_.push_back(ranks_[i]);
        const int64_t wanted = k - above;
        std::nth_element(border_.begin(), border_.begin() + (wanted - 1), border_.end(), std::greater<uint32_t>());
        const uint32_t limit = border_[wanted - 1];
        int64_t equal = wanted;
        for (int64_t i = 0; i < wanted; ++i) equal -= border_[i] > limit;
        for (int64_t i : places_)
            if (ranks_[i] > limit || (ranks_[i] == limit && equal-- > 0)) emit(i);
    }

  private:
    static constexpr int BITS = 12, SHIFT = 32 - BITS;

    void rank(const float* scores, int64_t size) {
        ranks_.resize(size);
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) store(&ranks_[i], ranks_of(load(scores + i)));
        for (; i < size; ++i) ranks_[i] = rank_of(scores[i]);
        histogram_.assign(1 << BITS, 0);
        for (uint32_t rank : ranks_) ++histogram_[rank >> SHIFT];
    }

    // The places of all ranks that are not below `least`, few of many.
    void collect(uint32_t least, int64_t size) {
        places_.clear();
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) {
            const Words found = (Words)(load_words(&ranks_[i]) >= least);
            uint64_t parts[LANES / 2], any = 0;
            memcpy(parts, &found, sizeof found);
            for (uint64_t part : parts) any |= part;
            if (!any) continue;
            for (int64_t j = i; j < i + LANES; ++j)
                if (ranks_[j] >= least) places_.push_back(j);
        }
        for (; i < size; ++i)
            if (ranks_[i] >= least) places_.push_back(i);
    }

    std::vector<int32_t> histogram_;
    std::vector<uint32_t> ranks_, border_;
    std::vector<int64_t> places_;
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
