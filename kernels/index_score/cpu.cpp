// The lightning indexer: I[t, s] = sum over heads of weights[t, h] * relu(q[t, h] . k[s]).
//
// Keys are turned a tile of 64 at a time, so that lanes are positions and no sum runs across lanes.
#pragma once

#include "../native/team.h"
#include "../native/vector.h"

namespace v32 {

constexpr int64_t KEY_TILE = 64;

typedef float Quad __attribute__((vector_size(16)));
typedef float LooseQuad __attribute__((vector_size(16), aligned(4), may_alias));

static inline void transpose_quad(const float* const rows[4], int64_t at, float* out, int64_t stride) {
    Quad r[4];
    for (int i = 0; i < 4; ++i) r[i] = *(const LooseQuad*)(rows[i] + at);
    const Quad a = {r[0][0], r[1][0], r[2][0], r[3][0]}, b = {r[0][1], r[1][1], r[2][1], r[3][1]};
    const Quad c = {r[0][2], r[1][2], r[2][2], r[3][2]}, d = {r[0][3], r[1][3], r[2][3], r[3][3]};
    *(LooseQuad*)out = a;
    *(LooseQuad*)(out + stride) = b;
    *(LooseQuad*)(out + 2 * stride) = c;
    *(LooseQuad*)(out + 3 * stride) = d;
}

// tile[d][i] = key i's value d for up to 64 keys; the rest is zero. `key(i)` is where key i lies.
template <class Key>
static inline void turn_keys(Key key, int64_t count, int64_t width, float* tile) {
    if (count < KEY_TILE) memset(tile, 0, width * KEY_TILE * sizeof(float));
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const float* const rows[4] = {key(i), key(i + 1), key(i + 2), key(i + 3)};
        int64_t d = 0;
        for (; d + 4 <= width; d += 4) transpose_quad(rows, d, tile + d * KEY_TILE + i, KEY_TILE);
        for (; d < width; ++d)
            for (int j = 0; j < 4; ++j) tile[d * KEY_TILE + i + j] = rows[j][d];
    }
    for (; i < count; ++i)
        for (int64_t d = 0; d < width; ++d) tile[d * KEY_TILE + i] = key(i)[d];
}

template <int H>
static inline void score_heads(const float* q, const float* weights, int64_t width, const float* keys, Floats (&out)[2]) {
    Floats acc[H][2] = {};
    for (int64_t d = 0; d < width; ++d) {
        const Floats k0 = load(keys + d * KEY_TILE), k1 = load(keys + d * KEY_TILE + LANES);
        for (int h = 0; h < H; ++h) {
            acc[h][0] += k0 * q[h * width + d];
            acc[h][1] += k1 * q[h * width + d];
        }
    }
    for (int h = 0; h < H; ++h)
        for (int j = 0; j < 2; ++j) out[j] += weights[h] * maximum(acc[h][j], Floats{});
}

// Scores of one query, q [heads, width], with all 64 keys of a turned tile.
static inline void score_tile(const float* q, const float* weights, int64_t heads, int64_t width, const float* tile,
                              float* scores) {
    for (int64_t at = 0; at < KEY_TILE; at += 2 * LANES) {
        Floats out[2] = {};
        int64_t h = 0;
        for (; h + 4 <= heads; h += 4) score_heads<4>(q + h * width, weights + h, width, tile + at, out);
        for (; h < heads; ++h) score_heads<1>(q + h * width, weights + h, width, tile + at, out);
        store(scores + at, out[0]);
        store(scores + at + LANES, out[1]);
    }
}

}  // namespace v32

extern "C" void v32_index_score(const float* q, const float* k, const float* weights, int64_t queries, int64_t keys,
                                int64_t heads, int64_t width, float* scores) {
    using namespace v32;
    const int64_t tiles = (keys + KEY_TILE - 1) / KEY_TILE;
    run(queries * keys * heads * width / 1000000 + 1, [&](Team& team, int) {
        const Scratch<float> tile(width * KEY_TILE);
        float out[KEY_TILE];
        for (int64_t item; (item = team.next()) < tiles;) {
            const int64_t start = item * KEY_TILE, count = std::min(keys - start, KEY_TILE);
            turn_keys([&](int64_t i) { return k + (start + i) * width; }, count, width, tile + 0);
            for (int64_t t = 0; t < queries; ++t) {
                score_tile(q + t * heads * width, weights + t * heads, heads, width, tile + 0, out);
                memcpy(scores + t * keys + start, out, count * sizeof(float));
            }
        }
    });
}
