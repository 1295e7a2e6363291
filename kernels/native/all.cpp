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
