// Everything that is compiled, as one unit: an operation's cpu.cpp may use another's.
#include "../decoder_step/cpu.cpp"
#include "../sample/cpu.cpp"

// Reads memory and does nothing with it: what `v32 bench --kernels` measures bandwidth with.
extern "C" uint32_t v32_read(const uint8_t* data, int64_t size) {
    using namespace v32;
    std::atomic<uint32_t> seen{0};
    run(1 << 30, [&](Team& team, int rank) {
        const Range mine = team.share(rank, size / (4 * GROUP) * 4 * GROUP, 4 * GROUP);
        Words bits[4] = {};
        for (int64_t i = mine.begin; i < mine.end; i += 4 * GROUP)
            for (int part = 0; part < 4; ++part) bits[part] |= load_words(data + i + part * GROUP);
        seen |= (bits[0] | bits[1] | bits[2] | bits[3])[0];
    });
    return seen;
}

// What the decoder step does inside, alone, for `v32 bench --kernels`. Weights are divided by their sum.
extern "C" void v32_moe_route(const float* logits, const float* bias, int64_t count, int64_t experts, int64_t chosen,
                              int64_t groups, int64_t chosen_groups, int64_t* indices, float* weights) {
    const v32::Routing routing = {experts, chosen, groups, chosen_groups, 1, 1.0f};
    for (int64_t t = 0; t < count; ++t)
        v32::route(routing, logits + t * experts, bias, indices + t * chosen, weights + t * chosen);
}

// q [queries, heads, width], slots [queries, count] of records [_, width], out [queries, heads, latent].
extern "C" void v32_sparse_mla(const float* q, const float* records, const int64_t* slots, int64_t queries, int64_t heads,
                               int64_t count, int64_t latent, int64_t width, float scale, float* out) {
    using namespace v32;
    run(1 << 30, [&](Team& team, int) {
        const int64_t stride = padded(count);
        std::vector<float> scores(2 * 4 * stride);
        for (int64_t t; (t = team.next()) < queries;) {
            const auto row = [&](int64_t i) { return records + slots[t * count + i] * width; };
            attend(heads, q + t * heads * width, width, row, count, latent, width, scale, scores.data(), stride,
                   out + t * heads * latent, latent);
        }
    });
}
