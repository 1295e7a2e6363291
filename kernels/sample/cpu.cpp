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
    explicit Sampler(int64_t vocab) : vocab_(vocab), logits_(padded(vocab), -INFINITE), masses_(padded(vocab)) {}

    void read(const float* logits) { std::copy(logits, logits + vocab_, logits_.begin()); }

    // `bits`: one a token, null where all are allowed; the largest logit at temperature 0, of equal ones the lower id.
    int64_t draw(const int32_t* bits, float temperature, float top_p, double uniform) {
        const int64_t best = argmax(bits);
        if (!(temperature > 0)) return best;
        exponentials(logits_[best], temperature);
        double total = 0, mass = 0, running = 0;
        for (int64_t id = 0; id < vocab_; ++id)
            if (allows(bits, id)) total += masses_[id];
        collect(bits, (1 - top_p) * total / vocab_);
        if (kept_.empty()) return best;
        const int64_t size = fill(top_p * total, mass);
        for (int64_t i = 0; i < size; ++i)
            if ((running += masses_[kept_[i].id]) > uniform * mass) return kept_[i].id;
        return kept_[size - 1].id;
    }

    // log_softmax(logits)[id]; NaN where the logits are not finite.
    float log_probability(int64_t id) {
        Floats top = splat(-INFINITE);
        Ints wrong = {};
        for (int64_t i = 0; i < padded(vocab_); i += LANES) {
            const Floats logits = load(&logits_[i]);
            top = maximum(logits, top);
            wrong |= logits != logits;
        }
        if (any(wrong)) return std::numeric_limits<float>::quiet_NaN();
        float most = -INFINITE;
        for (int lane = 0; lane < LANES; ++lane) most = std::max(most, top[lane]);
        exponentials(most, 1);
        double total = 0;
        for (int64_t i = 0; i < padded(vocab_); i += LANES) total += sum(load(&masses_[i]));
        return (float)((double)logits_[id] - most - std::log(total));
    }

  private:
    static constexpr float INFINITE = std::numeric_limits<float>::infinity();

    struct Candidate {
        float logit;
        int32_t id;
        bool operator<(const Candidate& other) const {
            return logit != other.logit ? logit > other.logit : id < other.id;
        }
    };

    static bool allows(const int32_t* bits, int64_t id) { return !bits || (bits[id / 32] >> (id % 32) & 1); }

    int64_t argmax(const int32_t* bits) const {
        int64_t best = 0;
        float top = -INFINITE;
        for (int64_t i = 0; i < vocab_; i += LANES) {
            if (!any(load(&logits_[i]) > top)) continue;
            for (int64_t id = i; id < std::min(i + LANES, vocab_); ++id)
                if (logits_[id] > top && allows(bits, id)) top = logits_[id], best = id;
        }
        return best;
    }

    static bool any(Ints found) {
        int32_t seen = 0;
        for (int lane = 0; lane < LANES; ++lane) seen |= found[lane];
        return seen;
    }

    // masses_[i] = e^((logits[i] - top) / temperature), at least e^-87.
    void exponentials(float top, float temperature) {
        for (int64_t i = 0; i < padded(vocab_); i += LANES)
            store(&masses_[i], exponential((load(&logits_[i]) - top) / temperature));
    }

    // The allowed tokens of at least this mass; all others together have less than 1 - top_p.
    void collect(const int32_t* bits, double least) {
        kept_.clear();
        for (int64_t id = 0; id < vocab_; ++id)
            if (masses_[id] >= least && allows(bits, id) && logits_[id] > -INFINITE)
                kept_.push_back({logits_[id], (int32_t)id});
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
    std::vector<float> logits_, masses_;
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
            const int32_t* bits = bitmask ? bitmask + row * ((vocab + 31) / 32) : nullptr;
            sampler.read(logits + row * vocab);
            ids[row] = sampler.draw(bits, temperature[row], top_p[row], uniforms[row]);
            logprobs[row] = sampler.log_probability(ids[row]);
        }
    });
}
