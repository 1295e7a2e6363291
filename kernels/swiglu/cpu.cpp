// silu(gate) * up.
#pragma once

#include "../native/vector.h"

namespace v32 {

// In place of the gate; `size` is rounded up to whole vectors, which must be readable and writable.
static inline void swiglu(float* gate, const float* up, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) {
        const Floats g = load(gate + i);
        store(gate + i, g * sigmoid(g) * load(up + i));
    }
}

}  // namespace v32

extern "C" void v32_swiglu(const float* gate, const float* up, int64_t size, float* y) {
    using namespace v32;
    const int64_t whole = size / LANES * LANES;
    memcpy(y, gate, size * sizeof(float));
    swiglu(y, up, whole);
    float last[2][LANES] = {};
    memcpy(last[0], gate + whole, (size - whole) * sizeof(float));
    memcpy(last[1], up + whole, (size - whole) * sizeof(float));
    swiglu(last[0], last[1], LANES);
    memcpy(y + whole, last[0], (size - whole) * sizeof(float));
}
