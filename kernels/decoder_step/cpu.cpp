// All layers of the model for one batch of tokens over the paged cache, in one call and one team of threads.
//
// A row is a token; it sees the positions 0..position of its sequence. Prompts and decoding pass the same code, and no
// row's result depends on the rows beside it: batches, chunks and drafts give the tokens of one at a time.
#pragma once

#include "../index_score/cpu.cpp"
#include "../moe_experts/cpu.cpp"
#include "../moe_route/cpu.cpp"
#include "../rms_norm/cpu.cpp"
#include "../rope/cpu.cpp"
#include "../sparse_mla/cpu.cpp"
#include "../topk_select/cpu.cpp"

namespace v32 {

struct Layer {
    Matrix q_a, q_b, kv_a, kv_b, o, index_q, index_k, index_weights;
    const float *input_norm, *q_a_norm, *kv_a_norm, *post_norm, *index_norm_weight, *index_norm_bias;
    Matrix router;  // no rows in a dense layer
    const float* correction_bias;
    const Expert* experts;
    Expert shared;  // the shared expert, or the dense block
};

struct Shape {
    int64_t layers, hidden, heads, q_lora, latent, nope, rope, value, index_heads, index_width, index_topk;
    int64_t index_interleaved;
    int64_t experts, chosen, groups, chosen_groups, normalise;
    float routed_factor, eps, softmax_scale;
};

// Has these experts of a layer in memory until it is called again, and sets their pointers; 0, or it has failed.
using Hold = int64_t (*)(int64_t layer, const int64_t* experts, int64_t count);

struct Model {
    Shape shape;
    Matrix embedding;
    const float* norm;
    const Layer* layers;
    Hold hold;  // null: all experts are in memory
    int64_t held;  // how many experts it can hold
};

// Of one layer: records [slots, latent + rope], index keys [slots, index_width].
struct Cache {
    float *records, *index_keys;
};

struct Batch {
    int64_t count;
    const int64_t *ids, *positions;
    const int64_t* const* slots;  // of each row's sequence, by position
    const float *cos, *sin;       // [positions, rope / 2]
};

// Rows of one width, laid out in tiles for each kind of matrix that reads them.
class Inputs {
  public:
    Inputs(int64_t count, int64_t size) : size_(size), width_(padded(size)), count_(count), memory_(3 * count * width_) {}
    // `kinds`: bits of the kinds wanted.
    void set(int64_t row, const float* x, int64_t kinds) const {
        for (int64_t kind = 0; kind < 3; ++kind)
            if (kinds >> kind & 1) arrange(kind, x, size_, row_of(tiles(kind), count_, width_, row));
    }
    float* tiles(int64_t kind) const { return memory_ + kind * count_ * width_; }

  private:
    const int64_t size_, width_, count_;
    const Scratch<float> memory_;
};

static inline int64_t bit(const Matrix& w) { return int64_t(1) << w.kind; }

class Step {
  public:
    Step(const Model& model, const Cache* caches, const Batch& batch)
        : m_(model), s_(model.shape), b_(batch), caches_(caches), n_(batch.count), record_(s_.latent + s_.rope),
          query_(padded(record_)), x_(n_ * s_.hidden), normed_(n_ * s_.hidden), inputs_(n_, s_.hidden),
          q_a_(n_ * s_.q_lora), q_inputs_(n_, s_.q_lora), kv_(n_ * record_), key_(n_ * s_.index_width),
          index_weights_(n_ * s_.index_heads), q_(n_ * s_.heads * (s_.nope + s_.rope)),
          index_q_(n_ * s_.index_heads * s_.index_width), queries_(n_ * s_.heads * query_),
          attended_(n_ * s_.heads * s_.latent), out_(n_ * s_.heads * s_.value), out_inputs_(n_, s_.heads * s_.value),
          logits_(n_ * s_.experts), indices_(n_ * s_.chosen), weights_(n_ * s_.chosen) {
        for (int64_t i = 0; i < n_; ++i) longest_ = std::max(longest_, seen(i));
        if (longest_ > s_.index_topk) {
            stride_ = (longest_ + KEY_TILE - 1) / KEY_TILE * KEY_TILE;
            scores_.reset(new Scratch<float>(std::min(n_, SCORED_ROWS) * stride_));
            chosen_.reset(new Scratch<int64_t>(n_ * s_.index_topk));
        }
    }

    void operator()(Team& team, int rank, float* hidden) {
        Mine mine(s_, std::min(longest_, s_.index_topk));
        each_row(team, rank, [&](int64_t i) { embed(b_.ids[i], x_ + i * s_.hidden); });
        for (int64_t l = 0; l < s_.layers; ++l) {
            attention(team, rank, m_.layers[l], caches_[l], mine);
            feed_forward(team, rank, l);
        }
        each_row(team, rank, [&](int64_t i) { rms_norm(x_ + i * s_.hidden, m_.norm, s_.hidden, s_.eps, hidden + i * s_.hidden); });
    }

  private:
    static constexpr int64_t SCORED_ROWS = 64;  // whose scores of all positions are kept at a time
    static constexpr int64_t TILE_ROWS = 16;    // that pass a tile of index keys while it stays in the second cache
    static constexpr int64_t KEY_TILE = 256;

    // Scratch memory of one thread.
    struct Mine {
        Mine(const Shape& s, int64_t most) : stride(padded(most)), probabilities(8 * stride) {}
        const int64_t stride;
        const Scratch<float> probabilities;
        TopK top;
    };

    int64_t seen(int64_t row) const { return b_.positions[row] + 1; }
    bool is_scored(int64_t row) const { return seen(row) > s_.index_topk; }

    template <class Work>
    void each_row(Team& team, int rank, Work work) {
        const Range mine = team.share(rank, n_, 1);
        for (int64_t i = mine.begin; i < mine.end; ++i) work(i);
        team.meet();
    }

    // out[m][n] (+)= w x_m, each thread a share of w's rows; `next` is the matrix that it reads after this one.
    template <class Store>
    void multiply(Team& team, int rank, const Matrix& w, const Inputs& inputs, const Matrix& next, Store store) {
        const Range rows = team.share(rank, w.rows, 8);
        product(w, rows.begin, rows.end, inputs.tiles(w.kind), n_, row_at(next, team.share(rank, next.rows, 8).begin), store);
    }
    void multiply(Team& team, int rank, const Matrix& w, const Inputs& inputs, const Matrix& next, float* out) {
        multiply(team, rank, w, inputs, next, [&](int64_t n, int64_t m, float value) { out[m * w.rows + n] = value; });
    }

    void embed(int64_t id, float* x) const {
        const Matrix& e = m_.embedding;
        if (e.kind == FLOAT32) return void(memcpy(x, (const float*)e.data + id * e.cols, e.cols * sizeof(float)));
        const uint16_t* row = (const uint16_t*)e.data + id * e.cols;
        for (int64_t i = 0; i < e.cols; ++i) {
            const uint32_t bits = (uint32_t)row[i] << 16;
            memcpy(x + i, &bits, sizeof bits);
        }
    }

    void attention(Team& team, int rank, const Layer& l, const Cache& cache, Mine& mine) {
        const bool scores = longest_ > s_.index_topk;
        const int64_t kinds = bit(l.q_a) | bit(l.kv_a) | bit(l.index_k) | bit(l.index_weights);
        each_row(team, rank, [&](int64_t i) {
            rms_norm(x_ + i * s_.hidden, l.input_norm, s_.hidden, s_.eps, normed_ + i * s_.hidden);
            inputs_.set(i, normed_ + i * s_.hidden, kinds);
        });
        multiply(team, rank, l.q_a, inputs_, l.kv_a, q_a_ + 0);
        multiply(team, rank, l.kv_a, inputs_, l.index_k, kv_ + 0);
        multiply(team, rank, l.index_k, inputs_, l.q_b, key_ + 0);
        if (scores) multiply(team, rank, l.index_weights, inputs_, l.index_q, index_weights_ + 0);
        team.meet();
        each_row(team, rank, [&](int64_t i) {
            float* q = q_a_ + i * s_.q_lora;
            rms_norm(q, l.q_a_norm, s_.q_lora, s_.eps, q);
            q_inputs_.set(i, q, bit(l.q_b) | bit(l.index_q));
            remember(i, l, cache);
        });
        multiply(team, rank, l.q_b, q_inputs_, l.kv_b, q_ + 0);
        if (scores) multiply(team, rank, l.index_q, q_inputs_, l.kv_b, index_q_ + 0);
        team.meet();
        absorb_queries(team, rank, l);
        if (scores) select(team, cache, mine);
        attend_rows(team, cache, mine);
        release_values(team, l);
        each_row(team, rank, [&](int64_t i) { out_inputs_.set(i, out_ + i * s_.heads * s_.value, bit(l.o)); });
        multiply(team, rank, l.o, out_inputs_, l.router.rows ? l.router : l.shared.gate,
                 [&](int64_t n, int64_t m, float value) { x_[m * s_.hidden + n] += value; });
        team.meet();
    }

    // The row's latent, rotary key and index key go to its slot.
    void remember(int64_t i, const Layer& l, const Cache& cache) {
        const int64_t slot = b_.slots[i][b_.positions[i]], pairs = s_.rope / 2;
        const float *cos = b_.cos + b_.positions[i] * pairs, *sin = b_.sin + b_.positions[i] * pairs;
        float *kv = kv_ + i * record_, *record = cache.records + slot * record_;
        rms_norm(kv, l.kv_a_norm, s_.latent, s_.eps, record);
        memcpy(record + s_.latent, kv + s_.latent, s_.rope * sizeof(float));
        rope(record + s_.latent, cos, sin, pairs, true);
        float* key = cache.index_keys + slot * s_.index_width;
        layer_norm(key_ + i * s_.index_width, l.index_norm_weight, l.index_norm_bias, s_.index_width, 1e-6f, key);
        rope(key, cos, sin, pairs, s_.index_interleaved);
    }

    // Queries of each head go into latent space, three rows at a time; index queries and weights are made ready.
    void absorb_queries(Team& team, int rank, const Layer& l) {
        const int64_t blocks = (n_ + 2) / 3, pairs = s_.rope / 2;
        for (int64_t item; (item = team.next()) < blocks * s_.heads;) {
            const int64_t head = item / blocks, first = item % blocks * 3, count = std::min<int64_t>(3, n_ - first);
            const float* qs[3];
            float* outs[3];
            for (int64_t m = 0; m < count; ++m) {
                const int64_t i = first + m;
                float* q = q_ + (i * s_.heads + head) * (s_.nope + s_.rope);
                qs[m] = q;
                outs[m] = queries_ + (i * s_.heads + head) * query_;
                memset(outs[m] + query_ - GROUP, 0, GROUP * sizeof(float));
                rope(q + s_.nope, b_.cos + b_.positions[i] * pairs, b_.sin + b_.positions[i] * pairs, pairs, true);
                memcpy(outs[m] + s_.latent, q + s_.nope, s_.rope * sizeof(float));
            }
            const int64_t row = head * (s_.nope + s_.value);
            if (count == 3) absorb<3>(l.kv_b, row, s_.nope, qs, outs);
            else if (count == 2) absorb<2>(l.kv_b, row, s_.nope, qs, outs);
            else absorb<1>(l.kv_b, row, s_.nope, qs, outs);
        }
        if (longest_ > s_.index_topk) {
            const float scale = 1.0f / std::sqrt((float)(s_.index_heads * s_.index_width));
            const Range mine = team.share(rank, n_, 1);
            for (int64_t i = mine.begin; i < mine.end; ++i)
                for (int64_t h = 0; h < s_.index_heads; ++h) {
                    rope(index_q_ + (i * s_.index_heads + h) * s_.index_width, b_.cos + b_.positions[i] * pairs,
                         b_.sin + b_.positions[i] * pairs, pairs, s_.index_interleaved);
                    index_weights_[i * s_.index_heads + h] *= scale;
                }
        }
        team.meet();
    }

    // Slots of the index_topk best positions of every row that sees more than those.
    void select(Team& team, const Cache& cache, Mine& mine) {
        for (int64_t begin = 0; begin < n_; begin += SCORED_ROWS) {
            const int64_t end = std::min(begin + SCORED_ROWS, n_), tiles = stride_ / KEY_TILE;
            const int64_t blocks = (end - begin + TILE_ROWS - 1) / TILE_ROWS;
            for (int64_t item; (item = team.next()) < tiles * blocks;) {
                const int64_t first = begin + item / tiles * TILE_ROWS;
                score(first, std::min(first + TILE_ROWS, end), begin, item % tiles * KEY_TILE, cache);
            }
            team.meet();
            for (int64_t item; (item = team.next()) < end - begin;) {
                const int64_t i = begin + item;
                if (!is_scored(i)) continue;
                int64_t* out = *chosen_ + i * s_.index_topk;
                mine.top.select(*scores_ + item * stride_, seen(i), s_.index_topk, [&](int64_t p) { *out++ = b_.slots[i][p]; });
            }
            team.meet();
        }
    }

    // One tile of positions for the rows [first, last).
    void score(int64_t first, int64_t last, int64_t base, int64_t start, const Cache& cache) {
        for (int64_t i = first; i < last; ++i) {
            if (!is_scored(i) || start >= seen(i)) continue;
            const int64_t* slots = b_.slots[i] + start;
            score_keys(index_q_ + i * s_.index_heads * s_.index_width, index_weights_ + i * s_.index_heads, s_.index_heads, s_.index_width,
                       [&](int64_t k) { return cache.index_keys + slots[k] * s_.index_width; }, std::min(KEY_TILE, seen(i) - start),
                       *scores_ + (i - base) * stride_ + start);
        }
    }

    void attend_rows(Team& team, const Cache& cache, Mine& mine) {
        const int64_t blocks = (s_.heads + 3) / 4;
        for (int64_t item; (item = team.next()) < n_ * blocks;) {
            const int64_t i = item / blocks, head = item % blocks * 4;
            const int64_t* slots = is_scored(i) ? *chosen_ + i * s_.index_topk : b_.slots[i];
            attend(std::min<int64_t>(4, s_.heads - head), queries_ + (i * s_.heads + head) * query_, query_,
                   [&](int64_t k) { return cache.records + slots[k] * record_; }, std::min(seen(i), s_.index_topk),
                   s_.latent, record_, s_.softmax_scale, mine.probabilities + 0, mine.stride,
                   attended_ + (i * s_.heads + head) * s_.latent, s_.latent);
        }
        team.meet();
    }

    // Attended latents become values, head by head.
    void release_values(Team& team, const Layer& l) {
        const int64_t rows = CHUNK, blocks = (n_ + rows - 1) / rows, width = padded(s_.latent);
        const Scratch<float> arranged(std::min(rows, n_) * width);
        for (int64_t item; (item = team.next()) < blocks * s_.heads;) {
            const int64_t head = item / blocks, first = item % blocks * rows, count = std::min(rows, n_ - first);
            for (int64_t m = 0; m < count; ++m)
                arrange(l.kv_b.kind, attended_ + ((first + m) * s_.heads + head) * s_.latent, s_.latent, row_of(arranged + 0, count, width, m));
            const int64_t row = head * (s_.nope + s_.value) + s_.nope;
            product(l.kv_b, row, row + s_.value, arranged + 0, count, row_at(l.kv_b, row + s_.nope + s_.value), [&](int64_t n, int64_t m, float value) {
                out_[((first + m) * s_.heads + head) * s_.value + n - row] = value;
            });
        }
        team.meet();
    }

    void feed_forward(Team& team, int rank, int64_t number) {
        const Layer& l = m_.layers[number];
        const int64_t gates = bit(l.shared.gate) | bit(l.shared.up) | (l.router.rows ? bit(l.router) | bit(l.experts->gate) | bit(l.experts->up) : 0);
        each_row(team, rank, [&](int64_t i) {
            rms_norm(x_ + i * s_.hidden, l.post_norm, s_.hidden, s_.eps, normed_ + i * s_.hidden);
            inputs_.set(i, normed_ + i * s_.hidden, gates);
        });
        if (l.router.rows) {
            multiply(team, rank, l.router, inputs_, l.shared.gate, logits_ + 0);
            team.meet();
            const Routing routing{s_.experts, s_.chosen, s_.groups, s_.chosen_groups, s_.normalise, s_.routed_factor};
            each_row(team, rank, [&](int64_t i) {
                route(routing, logits_ + i * s_.experts, l.correction_bias, indices_ + i * s_.chosen, weights_ + i * s_.chosen);
            });
        }
        for (bool is_last = false; !is_last;) {
            if (rank == 0) plan(number, l);
            team.meet();
            is_last = wave_ == 0;
            blocks_.up(team, [&](int64_t kind) { return inputs_.tiles(kind); }, n_);
            team.meet();
            blocks_.down(team, x_ + 0, n_, s_.hidden);
            team.meet();
        }
    }

    // The next wave of experts; after a failure the rest is computed without them, and is of no use.
    void plan(int64_t number, const Layer& l) {
        const int64_t experts = failed_ ? 0 : l.router.rows, most = m_.hold ? m_.held : INT64_MAX;
        const int64_t next = blocks_.plan(l.experts, experts, indices_ + 0, weights_ + 0, s_.chosen, &l.shared, n_, wave_, most);
        wave_ = next == experts ? 0 : next;
        if (m_.hold && !blocks_.ids().empty() && m_.hold(number, blocks_.ids().data(), (int64_t)blocks_.ids().size())) {
            failed_ = true;
            wave_ = 0;
            blocks_.plan(l.experts, 0, indices_ + 0, weights_ + 0, s_.chosen, &l.shared, n_);
        }
    }

    const Model& m_;
    const Shape& s_;
    const Batch& b_;
    const Cache* caches_;
    const int64_t n_, record_, query_;
    int64_t longest_ = 0, stride_ = 0;
    const Scratch<float> x_, normed_;
    const Inputs inputs_;
    const Scratch<float> q_a_;
    const Inputs q_inputs_;
    const Scratch<float> kv_, key_, index_weights_, q_, index_q_, queries_, attended_, out_;
    const Inputs out_inputs_;
    const Scratch<float> logits_;
    const Scratch<int64_t> indices_;
    const Scratch<float> weights_;
    std::unique_ptr<Scratch<float>> scores_;
    std::unique_ptr<Scratch<int64_t>> chosen_;
    FeedForward blocks_;
    int64_t wave_ = 0;  // the expert that the next wave begins with
    bool failed_ = false;
};

}  // namespace v32

// hidden [count, hidden_size]: the rows after the final norm. Writes the rows' records and index keys to their slots.
extern "C" void v32_decoder_step(const v32::Model* model, const v32::Cache* caches, const v32::Batch* batch,
                                 int64_t threads, float* hidden) {
    v32::Step step(*model, caches, *batch);
    v32::run(threads, [&](v32::Team& team, int rank) { step(team, rank, hidden); });
}
