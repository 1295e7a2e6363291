// y = weight * x / sqrt(mean(x^2) + eps), a row at a time.
#pragma once

#include "../native/team.h"
#include "../native/vector.h"

namespace v32 {

static inline float sum_of_squares(const float* x, int64_t size) {
    Floats acc[2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES)
        for (int j = 0; j < 2; ++j) acc[j] += load(x + i + j * LANES) * load(x + i + j * LANES);
    float total = sum(acc[0] + acc[1]);
    for (; i < size; ++i) total += x[i] * x[i];
    return total;
}

static inline void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* y) {
    const float scale = 1.0f / std::sqrt(sum_of_squares(x, size) / size + eps);
    for (int64_t i = 0; i < size; ++i) y[i] = x[i] * scale * weight[i];
}

// The indexer's: mean and variance removed, with weight and bias.
static inline void layer_norm(const float* x, const float* weight, const float* bias, int64_t size, float eps, float* y) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < size; ++i) mean += x[i];
    mean /= size;
    for (int64_t i = 0; i < size; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = (float)(1.0 / std::sqrt(variance / size + eps));
    for (int64_t i = 0; i < size; ++i) y[i] = (float)(x[i] - mean) * scale * weight[i] + bias[i];
}

}  // namespace v32

extern "C" void v32_rms_norm(const float* x, const float* weight, int64_t count, int64_t size, float eps, float* y) {
    using namespace v32;
    run(count * size / 65536 + 1, [&](Team& team, int rank) {
        const Range mine = team.share(rank, count, 1);
        for (int64_t m = mine.begin; m < mine.end; ++m) rms_norm(x + m * size, weight, size, eps, y + m * size);
    });
}
