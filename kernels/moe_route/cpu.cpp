// Sigmoid scores, bias-corrected and group-limited choice of experts; of equal scores the lower expert wins.
#pragma once

#include <algorithm>
#include <vector>

#include "../native/vector.h"

namespace v32 {

struct Routing {
    int64_t experts, chosen, groups, chosen_groups, normalise;
    float factor;
};

// The `count` largest of values [size], best first, the lower index among equals.
static inline void best_of(const float* values, int64_t size, int64_t count, int64_t* best) {
    for (int64_t i = 0, found = 0; i < size; ++i) {
        if (found == count && !(values[i] > values[best[count - 1]])) continue;
        int64_t at = found < count ? found++ : count - 1;
        for (; at > 0 && values[i] > values[best[at - 1]]; --at) best[at] = best[at - 1];
        best[at] = i;
    }
}

static inline void route(const Routing& routing, const float* logits, const float* bias, int64_t* indices, float* weights) {
    const int64_t size = routing.experts / routing.groups;
    std::vector<float> scores(routing.experts), choice(routing.experts), groups(routing.groups);
    for (int64_t e = 0; e < routing.experts; ++e) {
        scores[e] = sigmoid(logits[e]);
        choice[e] = scores[e] + bias[e];
    }
    if (routing.groups > 1) {
        for (int64_t g = 0; g < routing.groups; ++g) {
            int64_t two[2];
            best_of(&choice[g * size], size, std::min<int64_t>(2, size), two);
            groups[g] = choice[g * size + two[0]] + (size > 1 ? choice[g * size + two[1]] : 0.0f);
        }
        std::vector<int64_t> best(routing.chosen_groups);
        best_of(groups.data(), routing.groups, routing.chosen_groups, best.data());
        for (int64_t g = 0; g < routing.groups; ++g)
            if (std::find(best.begin(), best.end(), g) == best.end())
                std::fill(&choice[g * size], &choice[g * size] + size, -INFINITY);
    }
    best_of(choice.data(), routing.experts, routing.chosen, indices);
    float total = 0;
    for (int64_t k = 0; k < routing.chosen; ++k) total += weights[k] = scores[indices[k]];
    for (int64_t k = 0; k < routing.chosen; ++k)
        weights[k] = (routing.normalise ? weights[k] / (total + 1e-20f) : weights[k]) * routing.factor;
}

}  // namespace v32
