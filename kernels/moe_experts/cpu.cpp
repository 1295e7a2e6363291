// Feed-forward blocks of many experts: rows are grouped by expert, each weight is read once.
//
//   up     items: an expert and 64 of its inner rows        hidden = silu(gate x) * (up x)
//   down   items: 32 of the outer rows, all experts in order, so that a row's sum has one order
#pragma once

#include <memory>
#include <vector>

#include "../fp8_gemm/cpu.cpp"
#include "../swiglu/cpu.cpp"

namespace v32 {

struct Expert {
    Matrix gate, up, down;
};

// Rows that pass one expert: their numbers, their weights, and where their hidden values lie in tiles.
struct Group {
    const Expert* expert;
    std::vector<int64_t> rows;
    std::vector<float> weights;  // empty: all 1
    float* hidden;
};

class FeedForward {
  public:
    static constexpr int64_t INNER = 64, OUTER = 128;

    // Group the rows by their `chosen` experts in ascending order; every row passes `shared` last, if there is one.
    // Where memory holds few experts they come in waves of at most `most`: this one begins with expert `first`, the next
    // one with the result, which is num_experts after the last. `down` carries the sums from wave to wave.
    int64_t plan(const Expert* experts, int64_t num_experts, const int64_t* indices, const float* weights, int64_t chosen,
                 const Expert* shared, int64_t count, int64_t first = 0, int64_t most = INT64_MAX) {
        groups_.clear();
        ids_.clear();
        int64_t next = 0;
        if (num_experts) {
            std::vector<int64_t> place(num_experts, -1);
            for (int64_t i = 0; i < count * chosen; ++i) place[indices[i]] = num_experts;
            for (next = first; next < num_experts && (place[next] < 0 || (int64_t)ids_.size() < most); ++next)
                if (place[next] >= 0) {
                    place[next] = (int64_t)groups_.size();
                    groups_.push_back({experts + next, {}, {}, nullptr});
                    ids_.push_back(next);
                }
            for (int64_t i = 0; i < count * chosen; ++i) {
                if (indices[i] < first || indices[i] >= next) continue;
                Group& group = groups_[place[indices[i]]];
                group.rows.push_back(i / chosen);
                group.weights.push_back(weights[i]);
            }
        }
        is_first_ = first == 0, is_last_ = next == num_experts;
        if (!is_last_ && is_first_) carried_.resize(count * experts->down.rows);
        if (shared && is_last_) {
            groups_.push_back({shared, {}, {}, nullptr});
            for (int64_t i = 0; i < count; ++i) groups_.back().rows.push_back(i);
        }
        int64_t size = 0;
        for (Group& group : groups_) size += (int64_t)group.rows.size() * padded(group.expert->down.cols);
        if (size > capacity_) hidden_.reset(new Scratch<float>(size)), capacity_ = size;
        float* hidden = *hidden_ + 0;
        pieces_.clear();
        for (size_t g = 0; g < groups_.size(); ++g) {
            Group& group = groups_[g];
            const int64_t inner = group.expert->down.cols, count = (int64_t)group.rows.size(), width = padded(inner);
            group.hidden = hidden;
            hidden += count * width;
            for (int64_t m = 0; m < count; ++m)
                for (int64_t n = width - GROUP; n < width; ++n) at(row_of(group.hidden, count, width, m), n) = 0;
            for (int64_t n = 0; n < inner; n += INNER) pieces_.push_back({(int64_t)g, n});
        }
        return next;
    }

    const std::vector<int64_t>& ids() const { return ids_; }  // of the experts planned

    // `inputs(kind)` are all rows in tiles as matrices of that kind read them. Call from all threads; then meet.
    template <class Inputs>
    void up(Team& team, Inputs inputs, int64_t all) const {
        std::vector<float> own[2], gates, ups;
        const float* xs[2] = {};
        const Group* last = nullptr;
        for (int64_t item; (item = team.next()) < (int64_t)pieces_.size();) {
            const Group& group = groups_[pieces_[item].first];
            const Expert& expert = *group.expert;
            const int64_t begin = pieces_[item].second, end = std::min(begin + INNER, expert.gate.rows);
            const int64_t count = (int64_t)group.rows.size();
            if (last != &group) {
                xs[0] = gather(group, inputs(expert.gate.kind), all, expert.gate.cols, own[0]);
                xs[1] = expert.up.kind == expert.gate.kind ? xs[0] : gather(group, inputs(expert.up.kind), all, expert.up.cols, own[1]);
                last = &group;
            }
            if ((int64_t)gates.size() < count * INNER) gates.resize(count * INNER), ups.resize(count * INNER);
            product(expert.gate, begin, end, xs[0], count, row_at(expert.up, begin),
                    [&](int64_t n, int64_t m, float value) { gates[m * INNER + n - begin] = value; });
            // The next item if threads are equally fast.
            const auto& [next, row] = pieces_[std::min(item + team.size(), (int64_t)pieces_.size() - 1)];
            product(expert.up, begin, end, xs[1], count, row_at(groups_[next].expert->gate, row),
                    [&](int64_t n, int64_t m, float value) { ups[m * INNER + n - begin] = value; });
            swiglu(gates.data(), ups.data(), count * INNER);
            const int64_t kind = expert.down.kind, width = padded(expert.down.cols);
            for (int64_t m = 0; m < count; ++m)
                for (int64_t n = begin; n < end; ++n)
                    at(row_of(group.hidden, count, width, m), position(kind, n)) = gates[m * INNER + n - begin] * factor(kind);
        }
    }

    // y[row] += the weighted sum of its experts, y [count, outer]. Call from all threads; then meet.
    void down(Team& team, float* y, int64_t count, int64_t outer) {
        std::vector<float> sums(count * OUTER), values(count * OUTER);
        for (int64_t item; (item = team.next()) * OUTER < outer;) {
            const int64_t begin = item * OUTER, end = std::min(begin + OUTER, outer);
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (int64_t m = 0; m < (is_first_ ? 0 : count); ++m) std::copy_n(&carried_[m * outer + begin], end - begin, &sums[m * OUTER]);
            for (const Group& group : groups_) {
                const int64_t size = (int64_t)group.rows.size();
                const bool is_last = &group == &groups_.back();
                const Expert& next = *(is_last ? groups_[0] : (&group)[1]).expert;
                const int64_t row = std::min(begin + (is_last ? OUTER * team.size() : 0), outer - 1);
                product(group.expert->down, begin, end, group.hidden, size, row_at(next.down, row),
                        [&](int64_t n, int64_t m, float value) { values[m * OUTER + n - begin] = value; });
                // Not where the values are stored: each tile would fuse or not fuse this product in its own way.
                for (int64_t m = 0; m < size; ++m)
                    add(&values[m * OUTER], group.weights.empty() ? 1.0f : group.weights[m], &sums[group.rows[m] * OUTER]);
            }
            for (int64_t m = 0; m < count; ++m)
                if (!is_last_) std::copy_n(&sums[m * OUTER], end - begin, &carried_[m * outer + begin]);
                else for (int64_t n = begin; n < end; ++n) y[m * outer + n] += sums[m * OUTER + n - begin];
        }
    }

  private:
    // The group's rows in tiles of their own, which `own` holds; all rows need none.
    static const float* gather(const Group& group, float* tiles, int64_t all, int64_t cols, std::vector<float>& own) {
        const int64_t count = (int64_t)group.rows.size(), width = padded(cols);
        if (count == all) return tiles;
        own.resize(count * width);
        for (int64_t m = 0; m < count; ++m)
            copy_row(row_of(tiles, all, width, group.rows[m]), row_of(own.data(), count, width, m), width);
        return own.data();
    }

    static void add(const float* values, float weight, float* sums) {
        for (int64_t n = 0; n < OUTER; n += LANES) store(sums + n, load(sums + n) + weight * load(values + n));
    }

    std::vector<Group> groups_;
    std::vector<std::pair<int64_t, int64_t>> pieces_;
    std::vector<int64_t> ids_;
    std::vector<float> carried_;
    bool is_first_ = true, is_last_ = true;
    std::unique_ptr<Scratch<float>> hidden_;
    int64_t capacity_ = -1;
};

}  // namespace v32

// y [count, outer] += the weighted experts of each row of x.
extern "C" void v32_moe_experts(const v32::Expert* experts, int64_t num_experts, int64_t chosen, int64_t count,
                                const int64_t* indices, const float* weights, const float* x, float* y) {
    using namespace v32;
    const int64_t inner = experts->gate.cols, width = padded(inner);
    FeedForward blocks;
    blocks.plan(experts, num_experts, indices, weights, chosen, nullptr, count);
    const Scratch<float> arranged(3 * count * width);
    run(num_bytes(experts->gate) * 3 * chosen * count / BYTES_A_THREAD + 1, [&](Team& team, int rank) {
        const Range mine = team.share(rank, count, 1);
        for (int64_t m = mine.begin; m < mine.end; ++m)
            for (int64_t kind = 0; kind < 3; ++kind)
                arrange(kind, x + m * inner, inner, row_of(arranged + kind * count * width, count, width, m));
        team.meet();
        blocks.up(team, [&](int64_t kind) { return arranged + kind * count * width; }, count);
        team.meet();
        blocks.down(team, y, count, experts->down.rows);
    });
}
