// One token a row: grammar mask, temperature, exact top-p, inverse CDF. Only what fills top_p is sorted.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../native/team.h"
#include "../native/vector.h"

namespace v32 {

class Sampler {
  public:
    explicit Sampler(int64_t vocab) : vocab_(vocab), masses_(padded(vocab)) {}

    // `bits`: one a token, null where all are allowed; the largest logit at temperature 0, of equal ones the lower id.
    int64_t draw(const float* logits, const int32_t* bits, float temperature, float top_p, double uniform) {
        const int64_t best = argmax(logits, bits);
        if (!(temperature > 0)) return best;
        exponentials(logits, logits[best], temperature);
        kept_.clear();
        double total = 0;
        for (int64_t id = 0; id < vocab_; ++id)
            if (allows(bits, id) && logits[id] > -INFINITE) kept_.push_back({logits[id], id}), total += masses_[id];
        if (kept_.empty()) return best;
        double mass = 0;
        const int64_t size = fill(top_p * total, mass);
        double running = 0;
        for (int64_t i = 0; i < size; ++i)
            if ((running += masses_[kept_[i].id]) > uniform * mass) return kept_[i].id;
        return kept_[size - 1].id;
    }

    // log_softmax(logits)[id]; NaN where the logits are not finite.
    float log_probability(const float* logits, int64_t id) {
        float top = -INFINITE;
        for (int64_t i = 0; i < vocab_; ++i) {
            if (logits[i] != logits[i]) return logits[i];
            top = std::max(top, logits[i]);
        }
        exponentials(logits, top, 1);
        double total = 0;
        for (int64_t i = 0; i < padded(vocab_); i += LANES) total += sum(load(&masses_[i]));
        return (float)((double)logits[id] - top - std::log(total));
    }

  private:
    static constexpr float INFINITE = std::numeric_limits<float>::infinity();

    struct Candidate {
        float logit;
        int64_t id;
        bool operator<(const Candidate& other) const {
            return logit != other.logit ? logit > other.logit : id < other.id;
        }
    };

    static bool allows(const int32_t* bits, int64_t id) { return !bits || (bits[id / 32] >> (id % 32) & 1); }

    int64_t argmax(const float* logits, const int32_t* bits) const {
        int64_t best = 0;
        float top = -INFINITE;
        for (int64_t id = 0; id < vocab_; ++id)
            if (logits[id] > top && allows(bits, id)) top = logits[id], best = id;
        return best;
    }

    // masses_[i] = e^((logits[i] - top) / temperature), at least e^-87; nothing behind the vocabulary.
    void exponentials(const float* logits, float top, float temperature) {
        for (int64_t i = 0; i < padded(vocab_); i += LANES) {
            float part[LANES] = {};
            const int64_t count = std::max<int64_t>(std::min<int64_t>(vocab_ - i, LANES), 0);
            memcpy(part, logits + i, count * sizeof(float));
            store(&masses_[i], exponential((load(part) - top) / temperature));
            std::fill(&masses_[i] + count, &masses_[i] + LANES, 0.0f);
        }
    }

    // Sorts candidates until the first ones have the mass `wanted`; how many these are, and their mass.
    int64_t fill(double wanted, double& mass) {
        const int64_t all = kept_.size();
        for (int64_t size = 64;; size *= 8) {
            size = std::min(size, all);
            std::nth_element(kept_.begin(), kept_.begin() + size, kept_.end());
            std::sort(kept_.begin(), kept_.begin() + size);
            int64_t count = 0;
            for (mass = 0; count < size && (mass < wanted || count == 0); ++count) mass += masses_[kept_[count].id];
            if (mass >= wanted || size == all) return count;
        }
    }

    const int64_t vocab_;
    std::vector<float> masses_;
    std::vector<Candidate> kept_;
};

}  // namespace v32

extern "C" void v32_sample(const float* logits, int64_t rows, int64_t vocab, const float* temperature,
                           const float* top_p, const double* uniforms, const int32_t* bitmask, int64_t* ids,
                           float* logprobs) {
    using namespace v32;
    run(rows * vocab / 50000 + 1, [&](Team& team, int) {
        Sampler sampler(vocab);
        for (int64_t row; (row = team.next()) < rows;) {
            const float* own = logits + row * vocab;
            const int32_t* bits = bitmask ? bitmask + row * ((vocab + 31) / 32) : nullptr;
            ids[row] = sampler.draw(own, bits, temperature[row], top_p[row], uniforms[row]);
            logprobs[row] = sampler.log_probability(own, ids[row]);
        }
    });
}
