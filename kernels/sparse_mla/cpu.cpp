// Latent attention of one query over a list of cache rows, in the absorbed form, and the way in and out of latent space.
#pragma once

#include "../native/matrix.h"
#include "../native/team.h"

namespace v32 {

// outs[m][c] = sum over n of qs[m][n] * w[first + n][c]: queries into latent space, M of them, G groups of columns from c on.
template <int64_t KIND, int M, int G>
static inline void absorb_columns(const Matrix& w, int64_t first, int64_t count, int64_t c, const float* const* qs, float* const* outs) {
    using C = Codec<KIND>;
    const int64_t stride = w.cols * C::BYTES, blocks = (w.cols + BLOCK - 1) / BLOCK, size = std::min<int64_t>(w.cols - c, G * GROUP);
    Floats acc[4 * G][M] = {};
    uint8_t tail[G * GROUP * C::BYTES] = {};
    for (int64_t n = 0; n < count; ++n) {
        const uint8_t* p = (const uint8_t*)w.data + (first + n) * stride + c * C::BYTES;
        if (size < G * GROUP) p = (const uint8_t*)memcpy(tail, p, size * C::BYTES);
        const float scale = KIND == FLOAT8 ? w.scales[(first + n) / BLOCK * blocks + c / BLOCK] * HALF_BIAS : 1.0f;
        for (int g = 0; g < G; ++g, p += GROUP * C::BYTES) {
            const Floats parts[4] = {C::template part<0>(p), C::template part<1>(p), C::template part<2>(p), C::template part<3>(p)};
            for (int m = 0; m < M; ++m)
                for (int j = 0; j < 4; ++j) add_product(acc[4 * g + j][m], parts[j], splat(qs[m][n] * scale));
        }
    }
    for (int m = 0; m < M; ++m) {
        float values[G * GROUP];
        for (int j = 0; j < 4 * G; ++j) store(values + j * LANES, acc[j][m] * factor(KIND));
        for (int64_t i = 0; i < size; ++i) outs[m][c + i] = values[C::position(i)];
    }
}

template <int64_t KIND, int M>
static inline void absorb_of(const Matrix& w, int64_t first, int64_t count, const float* const* qs, float* const* outs) {
    constexpr int G = M == 1 ? 2 : 1;  // sums enough to keep the units busy
    static_assert(BLOCK % (G * GROUP) == 0, "columns that pass together share their scales");
    for (int64_t c = 0; c < w.cols; c += G * GROUP) absorb_columns<KIND, M, G>(w, first, count, c, qs, outs);
}

template <int M>
static inline void absorb(const Matrix& w, int64_t first, int64_t count, const float* const* qs, float* const* outs) {
    if (w.kind == FLOAT8) absorb_of<FLOAT8, M>(w, first, count, qs, outs);
    else if (w.kind == BFLOAT16) absorb_of<BFLOAT16, M>(w, first, count, qs, outs);
    else absorb_of<FLOAT32, M>(w, first, count, qs, outs);
}

// In place: softmax of scores * scale without the division; returns the sum. The rest of the last vector becomes 0.
static inline float exponentiate(float* scores, int64_t count, float scale) {
    Floats greatest = splat(scores[0]), total = {};
    int64_t whole = 0;
    for (; whole + LANES <= count; whole += LANES) greatest = maximum(load(scores + whole), greatest);
    float most = scores[0];
    for (int lane = 0; lane < LANES; ++lane) most = std::max(most, greatest[lane]);
    for (; whole < count; ++whole) most = std::max(most, scores[whole]);
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

// out[h][c] = sum over keys of p[key][h] * row(key)[c], c in [0, width), H heads.
template <int H, class Row>
static inline void weigh_rows(const float* p, Row row, int64_t count, int64_t width, float* out, int64_t out_stride) {
    int64_t c = 0;
    for (; c + 2 * LANES <= width; c += 2 * LANES) {
        Floats acc[H][2] = {};
        for (int64_t i = 0; i < count; ++i) {
            const float* values = row(i) + c;
            const Floats v0 = load(values), v1 = load(values + LANES);
            for (int h = 0; h < H; ++h) {
                add_product(acc[h][0], v0, splat(p[i * H + h]));
                add_product(acc[h][1], v1, splat(p[i * H + h]));
            }
        }
        for (int h = 0; h < H; ++h)
            for (int j = 0; j < 2; ++j) store(out + h * out_stride + c + j * LANES, acc[h][j]);
    }
    for (; c < width; ++c)
        for (int h = 0; h < H; ++h) {
            float total = 0;
            for (int64_t i = 0; i < count; ++i) total += row(i)[c] * p[i * H + h];
            out[h * out_stride + c] = total;
        }
}

// out[r][h] = rows[r] . q[h]
template <int H>
static inline void dot_rows(const float* const (&rows)[2], const float* q, int64_t q_stride, int64_t width, float (&out)[2][H]) {
    Floats acc[2][H] = {};
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) {
        Floats values[2] = {load(rows[0] + c), load(rows[1] + c)};
        keep(values[0]);
        keep(values[1]);
        for (int h = 0; h < H; ++h) {
            Floats in = load(q + h * q_stride + c);
            keep(in);
            for (int r = 0; r < 2; ++r) add_product(acc[r][h], values[r], in);
        }
    }
    for (int r = 0; r < 2; ++r)
        for (int h = 0; h < H; h += 4) {
            const Four four = sums(acc[r][h], acc[r][std::min(h + 1, H - 1)], acc[r][std::min(h + 2, H - 1)], acc[r][std::min(h + 3, H - 1)]);
            memcpy(out[r] + h, &four, std::min(4, H - h) * sizeof(float));
        }
    for (; c < width; ++c)
        for (int r = 0; r < 2; ++r)
            for (int h = 0; h < H; ++h) out[r][h] += rows[r][c] * q[h * q_stride + c];
}

// H heads of one query: q [H, q_stride] are latent and rotary part one after the other, padded with zeros; row(i) is
// record i of `count` with the same two parts. out [H, latent]. p: scratch, [2, H, p_stride], p_stride >= padded(count).
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
    float sums[H], *weights = p + H * p_stride;
    for (int h = 0; h < H; ++h) {
        sums[h] = exponentiate(p + h * p_stride, count, scale);
        for (int64_t i = 0; i < count; ++i) weights[i * H + h] = p[h * p_stride + i];
    }
    weigh_rows<H>(weights, row, count, latent, out, out_stride);
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
