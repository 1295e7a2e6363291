// Pairs of values turned by the angles of a position, in place.
#pragma once

#include <cstdint>

namespace v32 {

static inline void rope(float* x, const float* cos, const float* sin, int64_t pairs, bool interleaved) {
    for (int64_t i = 0; i < pairs; ++i) {
        float& a = x[interleaved ? 2 * i : i];
        float& b = x[interleaved ? 2 * i + 1 : i + pairs];
        const float turned = a * cos[i] - b * sin[i];
        b = a * sin[i] + b * cos[i];
        a = turned;
    }
}

}  // namespace v32

extern "C" void v32_rope(float* x, const float* cos, const float* sin, int64_t count, int64_t heads, int64_t pairs,
                         int64_t interleaved) {
    for (int64_t i = 0; i < count * heads; ++i)
        v32::rope(x + i * 2 * pairs, cos + i / heads * pairs, sin + i / heads * pairs, pairs, interleaved);
}
