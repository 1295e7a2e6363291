// Products with weight matrices as they lie in memory: FP8 e4m3 with a scale for each 128 x 128 block, bfloat16, float32.
//
// Each value of the result is summed by one accumulator in one order, whatever tile it is computed in: a row's result
// does not depend on the rows beside it, and a prompt computed at once equals one computed token by token.
#pragma once

#include "vector.h"

namespace v32 {

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT8 = 2 };

constexpr int64_t BLOCK = 128;

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
    // Halves of a word hold the codes 1 and 3, moved up by a byte the codes 0 and 2; one shift moves both of them. The
    // parts of one shift follow each other.
    template <int PART>
    static Floats part(const uint8_t* p) {
        const Words fours = load_words(p);
        const Words pair = PART < 2 ? even(fours) : (Words)((Halves)fours >> 4);
        return (Floats)((PART % 2 ? pair : pair << 16) & 0x87F00000u);
    }
    static Words even(Words fours) {
#if defined(__AVX2__) && V32_LANES == 8
        return (Words)_mm256_maddubs_epi16(_mm256_set1_epi16(16), (__m256i)fours);  // the lower bytes times 16
#else
        return (Words)((Halves)(fours << 8) >> 4);
#endif
    }
    static int64_t position(int64_t index) {
        const int64_t in = index % GROUP;
        return index - in + code_of(in % 4) * LANES + in / 4;
    }
    // The part that a code of four goes to, and the code of a part.
    static constexpr int64_t code_of(int64_t part) { return part % 2 * 2 + part / 2; }
};

static inline int64_t position(int64_t kind, int64_t index) {
    if (kind == FLOAT8) return Codec<FLOAT8>::position(index);
    return kind == BFLOAT16 ? Codec<BFLOAT16>::position(index) : index;
}

static inline float factor(int64_t kind) { return kind == FLOAT8 ? HALF_BIAS : 1.0f; }

// Inputs lie in tiles of TILE rows, the last one smaller, and there vector beside vector:
//
//   vector     0              1              ...
//   row        0  1  2  3     0  1  2  3
//
// so that a product reads them in one stream. `width` is the padded size of a row.
constexpr int64_t TILE = 4;

struct Row {
    float* first;    // vector v is at first + v * stride
    int64_t stride;
};

static inline Row row_of(float* tiles, int64_t count, int64_t width, int64_t row) {
    const int64_t top = row / TILE * TILE;
    return {tiles + top * width + (row - top) * LANES, (count - top < TILE ? count - top : TILE) * LANES};
}

static inline float& at(Row row, int64_t position) { return row.first[position / LANES * row.stride + position % LANES]; }

static inline void copy_row(Row from, Row to, int64_t width) {
    for (int64_t v = 0; v < width / LANES; ++v) store(to.first + v * to.stride, load(from.first + v * from.stride));
}

// Lay a vector out as products with `kind` read it: in the order of the decoded parts, zeros up to a whole group.
static inline void arrange(int64_t kind, const float* x, int64_t size, Row out) {
    for (int64_t start = 0; start < size; start += GROUP) {
        float group[GROUP] = {};
        const int64_t count = size - start < GROUP ? size - start : GROUP;
        if (count < GROUP) {
            for (int64_t i = 0; i < count; ++i) group[position(kind, i)] = x[start + i] * factor(kind);
        } else if (kind == FLOAT8) {
            for (int part = 0; part < 4; ++part)
                for (int lane = 0; lane < LANES; ++lane) group[part * LANES + lane] = x[start + 4 * lane + Codec<FLOAT8>::code_of(part)] * HALF_BIAS;
        } else if (kind == BFLOAT16) {
            for (int part = 0; part < 4; ++part)
                for (int lane = 0; lane < LANES; ++lane) group[part * LANES + lane] = x[start + part / 2 * 2 * LANES + 2 * lane + part % 2];
        } else {
            memcpy(group, x + start, sizeof group);
        }
        for (int part = 0; part < 4; ++part) store(out.first + (start / LANES + part) * out.stride, load(group + part * LANES));
    }
}

static inline const uint8_t* row_at(const Matrix& w, int64_t row) {
    return (const uint8_t*)w.data + row * w.cols * (w.kind == FLOAT8 ? 1 : w.kind == BFLOAT16 ? 2 : 4);
}

// acc[r][m] += rows[r] . x[m] over one group, two parts at a time. All rows share the inputs of the first, which stay in
// registers; there is no room for more.
template <class C, int R, int M, int PART = 0>
static inline void multiply_group(const uint8_t* const (&w)[R], int64_t offset, const float* x, Floats (&acc)[R][M]) {
    Floats in[M];
    for (int m = 0; m < M; ++m) in[m] = load(x + (PART * M + m) * LANES);
    for (int r = 0; r < R; ++r) {
        const Floats first = C::template part<PART>(w[r] + offset), second = C::template part<PART + 1>(w[r] + offset);
        for (int m = 0; m < M; ++m) add_product(acc[r][m], first, in[m]);
        for (int m = 0; m < M; ++m) add_product(acc[r][m], second, x + ((PART + 1) * M + m) * LANES);
    }
    if constexpr (PART == 0) multiply_group<C, R, M, 2>(w, offset, x, acc);
}

// What comes next of memory, line after line: that is how it likes to be read, while several rows at once are read at half
// the speed.
static inline void ask_for(const uint8_t* lines, int64_t size) {
    for (int64_t line = 0; line < size; line += 64) __builtin_prefetch(lines + line);
}

// total[r][m] += row r . x[m] of a tile of M inputs, decoding the rows on the way; all R rows lie in one row of blocks,
// whose scales are `scales`. Meanwhile what is read next comes into the cache, from `next` on.
template <int64_t KIND, int R, int M>
__attribute__((noinline)) static void accumulate(const uint8_t* rows, int64_t stride, const float* scales, const float* x,
                                                 int64_t size, const uint8_t* next, Floats (&total)[R][M]) {
    using C = Codec<KIND>;
    const uint8_t* w[R];
    for (int r = 0; r < R; ++r) w[r] = rows + r * stride;
    for (int64_t block = 0; block < size; block += BLOCK) {
        Floats acc[R][M] = {};
        const int64_t end = size - block < BLOCK ? size : block + BLOCK;
        ask_for(next + R * block * C::BYTES, R * BLOCK * C::BYTES);
        int64_t start = block;
        for (; start + GROUP <= end; start += GROUP) multiply_group<C, R, M>(w, start * C::BYTES, x + start * M, acc);
        if (start < end) {
            uint8_t tail[R][GROUP * C::BYTES] = {};
            const uint8_t* tails[R];
            for (int r = 0; r < R; ++r) tails[r] = (const uint8_t*)memcpy(tail[r], w[r] + start * C::BYTES, (end - start) * C::BYTES);
            multiply_group<C, R, M>(tails, 0, x + start * M, acc);
        }
        const Floats scale = splat(KIND == FLOAT8 ? scales[block / BLOCK] * HALF_BIAS : 1.0f);
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m) add_product(total[r][m], scale, acc[r][m]);
    }
}

// The product of the rows [begin, end), R at a time, with the tile of M inputs that begins with input `first`.
template <int64_t KIND, int R, int M, class Store>
static inline void product_rows(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t first, const uint8_t* after,
                                Store& store) {
    const int64_t stride = w.cols * Codec<KIND>::BYTES, blocks = (w.cols + BLOCK - 1) / BLOCK;
    for (int64_t n = begin; n < end; n += R) {
        Floats total[R][M] = {};
        const float* scales = w.scales + (KIND == FLOAT8 ? n / BLOCK * blocks : 0);
        const uint8_t* rows = (const uint8_t*)w.data + n * stride;
        accumulate<KIND, R, M>(rows, stride, scales, x, w.cols, n + R < end ? rows + R * stride : after, total);
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m) store(n + r, first + m, sum(total[r][m]));
    }
}

template <int64_t KIND, int M, class Store>
static inline void product_tile(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t first, const uint8_t* after,
                                Store& store) {
    constexpr int R = M < 3 ? 4 : 2;
    // Rows are taken from multiples of R on, so that no R of them lie across two rows of blocks.
    const int64_t head = begin + (R - begin % R) % R < end ? begin + (R - begin % R) % R : end;
    const int64_t whole = head + (end - head) / R * R;
    product_rows<KIND, 1, M>(w, begin, head, x, first, row_at(w, head), store);
    product_rows<KIND, R, M>(w, head, whole, x, first, whole < end ? row_at(w, whole) : after, store);
    product_rows<KIND, 1, M>(w, whole, end, x, first, after, store);
}

constexpr int64_t STRIP = 16;  // rows of weights that are decoded at a time, a block of columns of each
constexpr int64_t FEW = 8;     // inputs from which on decoding a strip first is faster
constexpr int64_t CHUNK = 64;  // inputs that share them: with half of them sums stay in the first cache, and prefill is 9% slower

// Every other vector of `out`.
template <class C>
static inline void decode_group(const uint8_t* p, float* out) {
    store(out, C::template part<0>(p));
    store(out + 2 * LANES, C::template part<1>(p));
    store(out + 4 * LANES, C::template part<2>(p));
    store(out + 6 * LANES, C::template part<3>(p));
}

// A block of columns of STRIP rows, decoded: two rows beside each other, vector by vector. Rows beyond `last` repeat it.
template <int64_t KIND>
static inline void decode_strip(const Matrix& w, int64_t first, int64_t last, int64_t start, int64_t size, float* out) {
    using C = Codec<KIND>;
    const int64_t stride = w.cols * C::BYTES;
    for (int64_t r = 0; r < STRIP; ++r) {
        const uint8_t* p = (const uint8_t*)w.data + (first + r < last ? first + r : last) * stride + start * C::BYTES;
        float* to = out + r / 2 * 2 * BLOCK + r % 2 * LANES;
        int64_t i = 0;
        for (; i + GROUP <= size; i += GROUP) decode_group<C>(p + i * C::BYTES, to + 2 * i);
        if (i < size) {
            uint8_t tail[GROUP * C::BYTES] = {};
            decode_group<C>((const uint8_t*)memcpy(tail, p + i * C::BYTES, (size - i) * C::BYTES), to + 2 * i);
        }
    }
}

template <int M>
static inline void multiply_vector(const float* w, const float* x, Floats (&acc)[2][M]) {
    Floats weights[2] = {load(w), load(w + LANES)};
    keep(weights[0]);
    keep(weights[1]);
    for (int m = 0; m < M; ++m) {
        Floats in = load(x + m * LANES);
        keep(in);
        for (int r = 0; r < 2; ++r) add_product(acc[r][m], weights[r], in);
    }
}

// totals[r][m] += scales[r] * (row r of a strip . input m): two rows and four inputs keep the units busy (94% of them),
// while more sums than eight would cost more at the border of a block than they save within. Meanwhile the next inputs and
// `size` bytes of weights from `soon` on for each pair of rows come into the cache.
template <int M>
__attribute__((noinline)) static void multiply_strip(const float* w, const float* x, int64_t vectors, const float* scales, int64_t rows,
                                                     Floats* totals, const float* next, const uint8_t* soon, int64_t size) {
    for (int64_t n = 0; n < rows; n += 2, w += 2 * BLOCK, totals += 2 * M, soon += size) {
        Floats acc[2][M] = {};
        ask_for(soon, size);
        for (int line = 0; line < M; ++line) __builtin_prefetch(next + (n / 2 * M + line) * 16);
        if (vectors == BLOCK / LANES) {
#pragma GCC unroll 16
            for (int v = 0; v < BLOCK / LANES; ++v) multiply_vector<M>(w + v * 2 * LANES, x + v * M * LANES, acc);
        } else {
            for (int64_t v = 0; v < vectors; ++v) multiply_vector<M>(w + v * 2 * LANES, x + v * M * LANES, acc);
        }
        const Floats scale[2] = {splat(scales[n]), splat(scales[n + 1])};
        for (int r = 0; r < 2; ++r)
            for (int m = 0; m < M; ++m) add_product(totals[r * M + m], scale[r], acc[r][m]);
    }
}

// store(n, first + m, w[n] . x[m]) for the rows [top, bottom) of one strip and up to CHUNK inputs.
template <int64_t KIND, class Store>
static inline void product_strip(const Matrix& w, int64_t top, int64_t bottom, const float* x, int64_t first, int64_t count,
                                 const uint8_t* next, Store& store) {
    const int64_t width = padded(w.cols), blocks = (w.cols + BLOCK - 1) / BLOCK, rows = (bottom - top + 1) / 2 * 2;
    alignas(64) float decoded[STRIP * BLOCK];
    Floats totals[STRIP * CHUNK];
    memset(totals, 0, STRIP * count * sizeof(Floats));
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t start = block * BLOCK, size = w.cols - start < BLOCK ? w.cols - start : BLOCK;
        float scales[STRIP];
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t n = top + r < bottom ? top + r : bottom - 1;
            scales[r] = KIND == FLOAT8 ? w.scales[n / BLOCK * blocks + block] * HALF_BIAS : 1.0f;
        }
        decode_strip<KIND>(w, top, bottom - 1, start, size, decoded);
        // A few lines at a time: all at once they wait for each other, and eight inputs took a quarter longer.
        const int64_t pairs = (count + TILE - 1) / TILE * (STRIP / 2), lines = STRIP * BLOCK * Codec<KIND>::BYTES / 64;
        const int64_t ahead = (lines + pairs - 1) / pairs * 64;
        const uint8_t* soon = next + STRIP * start * Codec<KIND>::BYTES;
        for (int64_t m = 0; m < count; m += TILE, soon += STRIP / 2 * ahead) {
            const int64_t left = count - m < TILE ? count - m : TILE;
            const float* in = x + (first + m) * width + start * left;
            Floats* out = totals + m * STRIP;
            if (left == 4) multiply_strip<4>(decoded, in, padded(size) / LANES, scales, rows, out, in + TILE * width, soon, ahead);
            else if (left == 3) multiply_strip<3>(decoded, in, padded(size) / LANES, scales, rows, out, in + TILE * width, soon, ahead);
            else if (left == 2) multiply_strip<2>(decoded, in, padded(size) / LANES, scales, rows, out, in + TILE * width, soon, ahead);
            else multiply_strip<1>(decoded, in, padded(size) / LANES, scales, rows, out, in + TILE * width, soon, ahead);
        }
    }
    for (int64_t m = 0; m < count; m += TILE) {
        const int64_t left = count - m < TILE ? count - m : TILE;
        for (int64_t n = top; n < bottom; ++n) {
            const Floats* of = totals + m * STRIP + (n - top) * left;
            const Four four = sums(of[0], of[left > 1], of[left > 2 ? 2 : 0], of[left > 3 ? 3 : 0]);
            for (int64_t i = 0; i < left; ++i) store(n, first + m + i, four[i]);
        }
    }
}

template <int64_t KIND, class Store>
static inline void product_of(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t count, const uint8_t* after,
                              Store& store) {
    const int64_t width = padded(w.cols), step = count > TILE ? STRIP : end - begin;
    // Inputs of a chunk stay in the second cache while all strips pass; a strip that few inputs share stays in the first.
    for (int64_t m = 0; m < count; m += CHUNK)
        for (int64_t n = begin; n < end; n += step) {
            const int64_t stop = n + step < end ? n + step : end;
            const uint8_t* next = stop < end ? row_at(w, stop) : after;
            if (count >= FEW) {
                product_strip<KIND>(w, n, stop, x, m, count - m < CHUNK ? count - m : CHUNK, next, store);
                continue;
            }
            if (count >= TILE) product_tile<KIND, TILE>(w, n, stop, x, 0, next, store);
            const int64_t whole = count / TILE * TILE;
            if (count % TILE == 3) product_tile<KIND, 3>(w, n, stop, x + whole * width, whole, next, store);
            if (count % TILE == 2) product_tile<KIND, 2>(w, n, stop, x + whole * width, whole, next, store);
            if (count % TILE == 1) product_tile<KIND, 1>(w, n, stop, x + whole * width, whole, next, store);
        }
}

// store(n, m, value) for the rows [begin, end) of w and `count` inputs, arranged for w.kind in tiles. Towards the end
// what is read afterwards, from `after` on, comes into the cache.
template <class Store>
static inline void product(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t count, const uint8_t* after,
                           Store store) {
    if (w.kind == FLOAT8) product_of<FLOAT8>(w, begin, end, x, count, after, store);
    else if (w.kind == BFLOAT16) product_of<BFLOAT16>(w, begin, end, x, count, after, store);
    else product_of<FLOAT32>(w, begin, end, x, count, after, store);
}

}  // namespace v32
