// Latent attention of one query over a list of cache rows, in the absorbed form, and the way in and out of latent space.
#pragma once

#include "../native/matrix.h"
#include "../native/team.h"

namespace v32 {

// outs[m][c] = sum over n of qs[m][n] * w[first + n][c]: queries into latent space, M of them.
template <int64_t KIND, int M>
static inline void absorb_of(const Matrix& w, int64_t first, int64_t count, const float* const* qs, float* const* outs) {
    using C = Codec<KIND>;
    const int64_t stride = w.cols * C::BYTES, blocks = (w.cols + BLOCK - 1) / BLOCK;
    for (int64_t c = 0; c < w.cols; c += GROUP) {
        const int64_t size = w.cols - c < GROUP ? w.cols - c : GROUP;
        Floats acc[4][M] = {};
        uint8_t tail[GROUP * C::BYTES] = {};
        for (int64_t n = 0; n < count; ++n) {
            const uint8_t* p = (const uint8_t*)w.data + (first + n) * stride + c * C::BYTES;
            if (size < GROUP) p = (const uint8_t*)memcpy(tail, p, size * C::BYTES);
            const float scale = KIND == FLOAT8 ? w.scales[(first + n) / BLOCK * blocks + c / BLOCK] * HALF_BIAS : 1.0f;
            const Floats parts[4] = {C::template part<0>(p), C::template part<1>(p), C::template part<2>(p),
                                     C::template part<3>(p)};
            for (int m = 0; m < M; ++m) {
                const float q = qs[m][n] * scale;
                for (int j = 0; j < 4; ++j) add_product(acc[j][m], parts[j], splat(q));
            }
        }
        for (int m = 0; m < M; ++m) {
            float values[GROUP];
            for (int j = 0; j < 4; ++j) store(values + j * LANES, acc[j][m] * factor(KIND));
            for (int64_t i = 0; i < size; ++i) outs[m][c + i] = values[C::position(i)];
        }
    }
}

template <int M>
static inline void absorb(const Matrix& w, int64_t first, int64_t count, const float* const* qs, float* const* outs) {
    if (w.kind == FLOAT8) absorb_of<FLOAT8, M>(w, first, count, qs, outs);
    else if (w.kind == BFLOAT16) absorb_of<BFLOAT16, M>(w, first, count, qs, outs);
    else absorb_of<FLOAT32, M>(w, first, count, qs, outs);
}

// In place: softmax of scores * scale without the division; returns the sum. The rest of the last vector becomes 0.
static inline float exponentiate(float* scores, int64_t count, float scale) {
    float most = scores[0];
    for (int64_t i = 1; i < count; ++i) most = scores[i] > most ? scores[i] : most;
    Floats total = {};
    for (int64_t i = 0; i < count; i += LANES) {
        Floats e = exponential((load(scores + i) - most) * scale);
        if (i + LANES > count)
            for (int lane = 0; lane < LANES; ++lane)
                if (i + lane >= count) e[lane] = 0;
        store(scores + i, e);
        total += e;
    }
    return sum(total);
}

// out[h][c] += sum over keys of p[h][key] * row(key)[c], c in [0, width), H heads.
template <int H, class Row>
static inline void weigh_rows(const float* p, int64_t stride, Row row, int64_t begin, int64_t end, int64_t width,
                              float* out, int64_t out_stride) {
    int64_t c = 0;
    for (; c + 2 * LANES <= width; c += 2 * LANES) {
        Floats acc[H][2];
        for (int h = 0; h < H; ++h)
            for (int j = 0; j < 2; ++j) acc[h][j] = load(out + h * out_stride + c + j * LANES);
        for (int64_t i = begin; i < end; ++i) {
            const float* values = row(i) + c;
            const Floats v0 = load(values), v1 = load(values + LANES);
            for (int h = 0; h < H; ++h) {
                add_product(acc[h][0], v0, splat(p[h * stride + i]));
                add_product(acc[h][1], v1, splat(p[h * stride + i]));
            }
        }
        for (int h = 0; h < H; ++h)
            for (int j = 0; j < 2; ++j) store(out + h * out_stride + c + j * LANES, acc[h][j]);
    }
    for (; c < width; ++c)
        for (int h = 0; h < H; ++h) {
            float total = out[h * out_stride + c];
            for (int64_t i = begin; i < end; ++i) total += row(i)[c] * p[h * stride + i];
            out[h * out_stride + c] = total;
        }
}

// out[r][h] = rows[r] . q[h]
template <int H>
static inline void dot_rows(const float* const (&rows)[2], const float* q, int64_t q_stride, int64_t width, float (&out)[2][H]) {
    Floats acc[2][H] = {};
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) {
        const Floats values[2] = {load(rows[0] + c), load(rows[1] + c)};
        for (int h = 0; h < H; ++h) {
            Floats in = load(q + h * q_stride + c);
            keep(in);
            for (int r = 0; r < 2; ++r) add_product(acc[r][h], values[r], in);
        }
    }
    for (int r = 0; r < 2; ++r)
        for (int h = 0; h < H; ++h) out[r][h] = sum(acc[r][h]);
    for (; c < width; ++c)
        for (int r = 0; r < 2; ++r)
            for (int h = 0; h < H; ++h) out[r][h] += rows[r][c] * q[h * q_stride + c];
}

// H heads of one query: q [H, q_stride] are latent and rotary part one after the other, padded with zeros; row(i) is
// record i of `count` with the same two parts. out [H, latent]. p: scratch, [H, p_stride], p_stride >= padded(count).
template <int H, class Row>
static inline void attend(const float* q, int64_t q_stride, Row row, int64_t count, int64_t latent, int64_t width,
                          float scale, float* p, int64_t p_stride, float* out, int64_t out_stride) {
    constexpr int64_t AHEAD = 8;  // rows that come into the cache before they are read
    for (int64_t i = 0; i < count; i += 2) {
        const float* rows[2] = {row(i), row(i + 1 < count ? i + 1 : i)};
        for (int64_t soon = i + AHEAD; soon < std::min(i + AHEAD + 2, count); ++soon)
            for (int64_t c = 0; c < width; c += 16) __builtin_prefetch(row(soon) + c);
        float found[2][H];
        dot_rows<H>(rows, q, q_stride, width, found);
        for (int h = 0; h < H; ++h) {
            p[h * p_stride + i] = found[0][h];
            if (i + 1 < count) p[h * p_stride + i + 1] = found[1][h];
        }
    }
    float sums[H];
    for (int h = 0; h < H; ++h) {
        sums[h] = exponentiate(p + h * p_stride, count, scale);
        memset(out + h * out_stride, 0, latent * sizeof(float));
    }
    constexpr int64_t ROWS = 64;  // of the cache, that stay in the first cache while all columns pass
    for (int64_t begin = 0; begin < count; begin += ROWS)
        weigh_rows<H>(p, p_stride, row, begin, std::min(begin + ROWS, count), latent, out, out_stride);
    for (int h = 0; h < H; ++h)
        for (int64_t c = 0; c < latent; ++c) out[h * out_stride + c] *= 1.0f / sums[h];
}

// Any number of heads.
template <class Row>
static inline void attend(int64_t heads, const float* q, int64_t q_stride, Row row, int64_t count, int64_t latent,
                          int64_t width, float scale, float* p, int64_t p_stride, float* out, int64_t out_stride) {
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4)
        attend<4>(q + h * q_stride, q_stride, row, count, latent, width, scale, p, p_stride, out + h * out_stride, out_stride);
    for (; h < heads; ++h)
        attend<1>(q + h * q_stride, q_stride, row, count, latent, width, scale, p, p_stride, out + h * out_stride, out_stride);
}

}  // namespace v32
