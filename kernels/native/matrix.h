// Products with weight matrices as they lie in memory: FP8 e4m3 with a scale for each 128 x 128 block, bfloat16, float32.
//
// Each value of the result is summed by one accumulator in one order, whatever tile it is computed in: a row's result
// does not depend on the rows beside it, and a prompt computed at once equals one computed token by token.
#pragma once

#include "vector.h"

namespace v32 {

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT8 = 2 };

constexpr int64_t BLOCK = 128;
constexpr int64_t EXPECTED_BYTES = 1 << 13;

struct Matrix {
    const void* data;
    const float* scales;  // [ceil(rows / 128), ceil(cols / 128)] of FLOAT8
    int64_t rows, cols;
    int64_t kind;
};

// An FP8 code becomes a float by moving its bits: e4m3's exponent has bias 7, float32's 127, so values come out
// 2^120 too small. Half of that is put into the vector beforehand, half into the scale, and nothing underflows.
constexpr float HALF_BIAS = 0x1p60f;

template <int64_t KIND>
struct Codec;

template <>
struct Codec<FLOAT32> {
    static constexpr int64_t BYTES = 4;
    // Vector `part` (0..3) of the group that starts at p; holds the values at `position(index)` / LANES == part.
    template <int PART>
    static Floats part(const uint8_t* p) { return load((const float*)p + PART * LANES); }
    static int64_t position(int64_t index) { return index; }
};

template <>
struct Codec<BFLOAT16> {
    static constexpr int64_t BYTES = 2;
    template <int PART>
    static Floats part(const uint8_t* p) {
        const Words pairs = load_words(p + PART / 2 * 4 * LANES);
        return PART % 2 ? (Floats)(pairs & 0xFFFF0000u) : (Floats)(pairs << 16);
    }
    static int64_t position(int64_t index) {
        const int64_t in = index % GROUP, half = in / (2 * LANES), pair = in % (2 * LANES);
        return index - in + (2 * half + pair % 2) * LANES + pair / 2;
    }
};

template <>
struct Codec<FLOAT8> {
    static constexpr int64_t BYTES = 1;
    // Halves of a word hold the codes 1 and 3, moved up by a byte the codes 0 and 2; one shift moves both of them.
    template <int PART>
    static Floats part(const uint8_t* p) {
        const Words fours = load_words(p);
        const Words pair = (Words)((Halves)(PART % 2 ? fours : fours << 8) >> 4);
        return (Floats)((PART < 2 ? pair << 16 : pair) & 0x87F00000u);
    }
    static int64_t position(int64_t index) {
        const int64_t in = index % GROUP;
        return index - in + in % 4 * LANES + in / 4;
    }
};

static inline int64_t position(int64_t kind, int64_t index) {
    if (kind == FLOAT8) return Codec<FLOAT8>::position(index);
    return kind == BFLOAT16 ? Codec<BFLOAT16>::position(index) : index;
}

static inline float factor(int64_t kind) { return kind == FLOAT8 ? HALF_BIAS : 1.0f; }

// Lay a vector out as products with `kind` read it: in the order of the decoded parts, zeros up to a whole group.
static inline void arrange(int64_t kind, const float* x, int64_t size, float* out) {
    const int64_t whole = size / GROUP * GROUP;
    if (kind == FLOAT32) {
        memcpy(out, x, whole * sizeof(float));
    } else if (kind == FLOAT8) {
        for (int64_t start = 0; start < whole; start += GROUP)
            for (int part = 0; part < 4; ++part)
                for (int lane = 0; lane < LANES; ++lane)
                    out[start + part * LANES + lane] = x[start + 4 * lane + part] * HALF_BIAS;
    } else {
        for (int64_t start = 0; start < whole; start += GROUP)
            for (int part = 0; part < 4; ++part)
                for (int lane = 0; lane < LANES; ++lane)
                    out[start + part * LANES + lane] = x[start + part / 2 * 2 * LANES + 2 * lane + part % 2];
    }
    if (whole == size) return;
    memset(out + whole, 0, GROUP * sizeof(float));
    for (int64_t i = whole; i < size; ++i) out[position(kind, i)] = x[i] * factor(kind);
}

// Sixteen registers hold the sums, the fewer of weights and inputs, and one of the others.
template <class C, int R, int M, int PART>
static inline void multiply_part(const uint8_t* const* w, const float* const (&x)[M], Floats (*acc)[M]) {
    if constexpr (R < M) {
        Floats weights[R];
        for (int r = 0; r < R; ++r) weights[r] = C::template part<PART>(w[r]);
        for (int m = 0; m < M; ++m) {
            Floats in = load(x[m] + PART * LANES);
            keep(in);
            for (int r = 0; r < R; ++r) acc[r][m] += weights[r] * in;
        }
    } else {
        Floats in[M];
        for (int m = 0; m < M; ++m) in[m] = load(x[m] + PART * LANES);
        for (int r = 0; r < R; ++r) {
            const Floats weight = C::template part<PART>(w[r]);
            for (int m = 0; m < M; ++m) acc[r][m] += weight * in[m];
        }
    }
}

// Row by row where decoding is most of the work, so that parts share its first steps; else part by part, so that rows
// share the inputs.
template <class C, int R, int M>
static inline void multiply_group(const uint8_t* const* w, const float* const (&x)[M], Floats (*acc)[M]) {
    constexpr int STEP = M == 1 ? 1 : R;
    for (int r = 0; r < R; r += STEP) {
        multiply_part<C, STEP, M, 0>(w + r, x, acc + r);
        multiply_part<C, STEP, M, 1>(w + r, x, acc + r);
        multiply_part<C, STEP, M, 2>(w + r, x, acc + r);
        multiply_part<C, STEP, M, 3>(w + r, x, acc + r);
    }
}

// The rows from `row` on will be read soon: their first lines come into the cache meanwhile. A product that begins with
// rows it did not ask for waits for memory through its first tile.
static inline void expect(const Matrix& w, int64_t row) {
    const int64_t stride = w.cols * (w.kind == FLOAT8 ? 1 : w.kind == BFLOAT16 ? 2 : 4), tile = 8 * stride;
    const uint8_t* first = (const uint8_t*)w.data + row * stride;
    for (int64_t line = 0; line < (tile < EXPECTED_BYTES ? tile : EXPECTED_BYTES); line += 64) __builtin_prefetch(first + line);
}

// total[r][m] += rows[r] . xs[m] over `size` values from column `start` on, a multiple of BLOCK; xs arranged for the kind;
// all rows lie in one row of blocks, whose scales are `scales`. Meanwhile the R rows at `next`, if any, come into the cache, one
// line after the other: that is how memory likes to be read, while R rows at once are read at half the speed.
template <int64_t KIND, int R, int M>
__attribute__((noinline)) static void accumulate(const uint8_t* const* rows, const float* scales, const float* const* xs, int64_t start,
                              int64_t size, const uint8_t* next, Floats (&total)[R][M]) {
    using C = Codec<KIND>;
    const uint8_t* w[R];
    const float* x[M];
    for (int r = 0; r < R; ++r) w[r] = rows[r] + start * C::BYTES;
    for (int m = 0; m < M; ++m) x[m] = xs[m] + start;
    for (int64_t block = start; block < start + size; block += BLOCK) {
        Floats acc[R][M] = {};
        int64_t left = start + size - block < BLOCK ? start + size - block : BLOCK;
        for (int64_t line = 0; next && line < R * BLOCK * C::BYTES; line += 64)
            __builtin_prefetch(next + R * block * C::BYTES + line);
        for (; left >= GROUP; left -= GROUP) {
            multiply_group<C, R, M>(w, x, acc);
            for (int r = 0; r < R; ++r) w[r] += GROUP * C::BYTES;
            for (int m = 0; m < M; ++m) x[m] += GROUP;
        }
        if (left > 0) {
            uint8_t tail[R][GROUP * C::BYTES] = {};
            for (int r = 0; r < R; ++r) {
                memcpy(tail[r], w[r], left * C::BYTES);
                w[r] = tail[r];
            }
            multiply_group<C, R, M>(w, x, acc);
        }
        const float scale = KIND == FLOAT8 ? scales[block / BLOCK] * HALF_BIAS : 1.0f;
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m) total[r][m] += scale * acc[r][m];
    }
}

constexpr int64_t PANEL = 512;      // columns of the inputs that stay in the first cache while rows pass
constexpr int64_t PANEL_ROWS = 32;  // rows whose sums are kept meanwhile

// store(n, first + m, w[n] . xs[m]) for the rows n in [begin, end), a multiple of R, M inputs.
template <int64_t KIND, int R, int M, class Store>
static inline void product_tile(const Matrix& w, int64_t begin, int64_t end, const float* const* xs, int64_t first,
                                Store& store) {
    const int64_t stride = w.cols * Codec<KIND>::BYTES, blocks = (w.cols + BLOCK - 1) / BLOCK;
    const int64_t panel = M < 3 ? w.cols : PANEL;
    constexpr int64_t SPAN = R == 1 ? 1 : PANEL_ROWS;
    for (int64_t top = begin; top < end; top += SPAN) {
        const int64_t bottom = top + SPAN < end ? top + SPAN : end;
        Floats totals[SPAN / R][R][M] = {};
        for (int64_t start = 0; start < w.cols; start += panel) {
            for (int64_t n = top; n < bottom; n += R) {
                const uint8_t* rows[R];
                for (int r = 0; r < R; ++r) rows[r] = (const uint8_t*)w.data + (n + r) * stride;
                const float* scales = w.scales + (KIND == FLOAT8 ? n / BLOCK * blocks : 0);
                const int64_t size = w.cols - start < panel ? w.cols - start : panel;
                accumulate<KIND, R, M>(rows, scales, xs, start, size, rows[0] + R * stride, totals[(n - top) / R]);
            }
        }
        for (int64_t n = top; n < bottom; ++n)
            for (int m = 0; m < M; ++m) store(n, first + m, sum(totals[(n - top) / R][(n - top) % R][m]));
    }
}

constexpr int64_t TILE_BYTES = 1 << 16;  // of weights that stay in the second cache while all inputs pass

template <int64_t KIND, int M, class Store>
static inline void product_inputs(const Matrix& w, int64_t begin, int64_t end, const float* const* xs, int64_t first,
                                  Store& store) {
    constexpr int R = M == 1 ? 8 : M < 4 ? 4 : 2;
    // Tiles start at multiples of R, so that none lies across two rows of blocks.
    const int64_t head = begin + (R - begin % R) % R < end ? begin + (R - begin % R) % R : end;
    const int64_t whole = head + (end - head) / R * R;
    product_tile<KIND, 1, M>(w, begin, head, xs, first, store);
    product_tile<KIND, R, M>(w, head, whole, xs, first, store);
    product_tile<KIND, 1, M>(w, whole, end, xs, first, store);
}

template <int64_t KIND, class Store>
static inline void product_of(const Matrix& w, int64_t begin, int64_t end, const float* const* xs, int64_t count,
                              Store& store) {
    constexpr int M = 6;
    const int64_t tile = count > M ? (TILE_BYTES / (w.cols * Codec<KIND>::BYTES) / PANEL_ROWS + 1) * PANEL_ROWS : end - begin;
    for (int64_t n = begin; n < end; n += tile) {
        const int64_t stop = n + tile < end ? n + tile : end;
        int64_t m = 0;
        for (; m + M <= count; m += M) product_inputs<KIND, M>(w, n, stop, xs + m, m, store);
        if (m + 3 <= count) product_inputs<KIND, 3>(w, n, stop, xs + m, m, store), m += 3;
        if (m + 2 <= count) product_inputs<KIND, 2>(w, n, stop, xs + m, m, store), m += 2;
        if (m < count) product_inputs<KIND, 1>(w, n, stop, xs + m, m, store);
    }
}

// store(n, m, value) for the rows [begin, end) of w and `count` inputs, each arranged for w.kind.
template <class Store>
static inline void product(const Matrix& w, int64_t begin, int64_t end, const float* const* xs, int64_t count,
                           Store store) {
    if (w.kind == FLOAT8) product_of<FLOAT8>(w, begin, end, xs, count, store);
    else if (w.kind == BFLOAT16) product_of<BFLOAT16>(w, begin, end, xs, count, store);
    else product_of<FLOAT32>(w, begin, end, xs, count, store);
}

}  // namespace v32
