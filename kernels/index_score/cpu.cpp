// The lightning indexer: I[t, s] = sum over heads of weights[t, h] * relu(q[t, h] . k[s]).
#pragma once

#include "../native/team.h"
#include "../native/vector.h"

namespace v32 {

constexpr int64_t KEYS = 4;         // that share what is loaded of the queries
constexpr int64_t KEYS_AHEAD = 32;  // that come into the cache meanwhile

// scores[key] += weights[h] * relu(q[h] . key) for H heads, q [H, width], of whole vectors.
template <int H>
static inline __attribute__((always_inline)) void score_heads(const float* q, const float* weights, const float* const (&keys)[KEYS],
                                                              int64_t width, Four& scores) {
    Floats acc[H][KEYS] = {};
#pragma GCC unroll 16
    for (int64_t d = 0; d < width; d += LANES)
        for (int k = 0; k < KEYS; ++k) {
            Floats key = load(keys[k] + d);
            keep(key);
            for (int h = 0; h < H; ++h) add_product(acc[h][k], key, load(q + h * width + d));
        }
    for (int h = 0; h < H; ++h) {
        const Four products = sums(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
        scores += weights[h] * (products > 0 ? products : Four{});
    }
}

// The same of one key, whatever the width.
static inline float score_key(const float* q, const float* weights, int64_t heads, int64_t width, const float* key) {
    float score = 0;
    for (int64_t h = 0; h < heads; ++h) {
        float product = 0;
        for (int64_t d = 0; d < width; ++d) product += q[h * width + d] * key[d];
        score += weights[h] * (product > 0 ? product : 0.0f);
    }
    return score;
}

template <class Key>
static inline __attribute__((always_inline)) void score_vectors(const float* q, const float* weights, int64_t heads, int64_t width, Key key,
                                                                int64_t count, float* scores) {
    for (int64_t i = 0; i < count; i += KEYS) {
        const float* keys[KEYS];
        for (int k = 0; k < KEYS; ++k) keys[k] = key(std::min(i + k, count - 1));
        for (int64_t soon = i + KEYS_AHEAD; soon < std::min(i + KEYS_AHEAD + KEYS, count); ++soon)
            for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(key(soon) + d);
        Four found = {};
        int64_t h = 0;
        for (; h + 2 <= heads; h += 2) score_heads<2>(q + h * width, weights + h, keys, width, found);
        if (h < heads) score_heads<1>(q + h * width, weights + h, keys, width, found);
        memcpy(scores + i, &found, std::min(KEYS, count - i) * sizeof(float));
    }
}

// Scores of one query, q [heads, width], with `count` keys; key(i) is where key i lies.
template <class Key>
static inline void score_keys(const float* q, const float* weights, int64_t heads, int64_t width, Key key, int64_t count, float* scores) {
    // The compiler knows the usual widths: a third faster.
    if (width == 128) score_vectors(q, weights, heads, 128, key, count, scores);
    else if (width == 64) score_vectors(q, weights, heads, 64, key, count, scores);
    else if (width % LANES == 0) score_vectors(q, weights, heads, width, key, count, scores);
    else
        for (int64_t i = 0; i < count; ++i) scores[i] = score_key(q, weights, heads, width, key(i));
}

}  // namespace v32

extern "C" void v32_index_score(const float* q, const float* k, const float* weights, int64_t queries, int64_t keys,
                                int64_t heads, int64_t width, float* scores) {
    using namespace v32;
    run(queries * keys * heads * width / 1000000 + 1, [&](Team& team, int rank) {
        const Range mine = team.share(rank, keys, KEYS);
        for (int64_t t = 0; t < queries; ++t)
            score_keys(q + t * heads * width, weights + t * heads, heads, width, [&](int64_t i) { return k + (mine.begin + i) * width; },
                       mine.end - mine.begin, scores + t * keys + mine.begin);
    });
}
