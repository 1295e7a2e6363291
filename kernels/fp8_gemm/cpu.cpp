// y = x W^T for a weight of any kind; each thread takes a share of the weight's rows.
#pragma once

#include "../native/matrix.h"
#include "../native/team.h"

namespace v32 {

// Below so many bytes of weights a second thread costs more than it brings: little while both run, milliseconds where
// another process has one of the cores.
constexpr int64_t BYTES_A_THREAD = 1 << 19;

static inline int64_t num_bytes(const Matrix& w) { return w.rows * w.cols * (w.kind == FLOAT8 ? 1 : w.kind == BFLOAT16 ? 2 : 4); }

}  // namespace v32

extern "C" void v32_linear(const v32::Matrix* weight, const float* x, int64_t count, float* y) {
    using namespace v32;
    const Matrix w = *weight;
    const int64_t width = padded(w.cols);
    const Scratch<float> arranged(count * width);
    run(num_bytes(w) * count / BYTES_A_THREAD + 1, [&](Team& team, int rank) {
        const Range mine = team.share(rank, count, 1);
        for (int64_t m = mine.begin; m < mine.end; ++m) arrange(w.kind, x + m * w.cols, w.cols, row_of(arranged + 0, count, width, m));
        team.meet();
        const Range rows = team.share(rank, w.rows, 8);
        product(w, rows.begin, rows.end, arranged + 0, count, row_at(w, rows.end), [&](int64_t n, int64_t m, float value) { y[m * w.rows + n] = value; });
    });
}
