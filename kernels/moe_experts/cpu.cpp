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

// Rows that pass one expert: their numbers, weights and places in the hidden buffer.
struct Group {
    const Expert* expert;
    std::vector<int64_t> rows;
    std::vector<float> weights;  // empty: all 1
    std::vector<float*> hidden;
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
                    groups_.push_back({experts + next, {}, {}, {}});
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
            groups_.push_back({shared, {}, {}, {}});
            for (int64_t i = 0; i < count; ++i) groups_.back().rows.push_back(i);
        }
        int64_t size = 0;
        for (Group& group : groups_) size += (int64_t)group.rows.size() * padded(group.expert->down.cols);
        if (size > capacity_) hidden_.reset(new Scratch<float>(size)), capacity_ = size;
        float* hidden = *hidden_ + 0;
        pieces_.clear();
        for (size_t g = 0; g < groups_.size(); ++g) {
            Group& group = groups_[g];
            const int64_t inner = group.expert->down.cols, width = padded(inner);
            for (size_t m = 0; m < group.rows.size(); ++m, hidden += width) {
                if (width > inner) memset(hidden + width - GROUP, 0, GROUP * sizeof(float));
                group.hidden.push_back(hidden);
            }
            for (int64_t n = 0; n < inner; n += INNER) pieces_.push_back({(int64_t)g, n});
        }
        return next;
    }

    const std::vector<int64_t>& ids() const { return ids_; }  // of the experts planned

    // `inputs(kind, row)` is a row as matrices of that kind read it. Call from all threads; then meet.
    template <class Inputs>
    void up(Team& team, Inputs inputs) const {
        std::vector<const float*> xs[2];
        std::vector<float> gates, ups;
        for (int64_t item; (item = team.next()) < (int64_t)pieces_.size();) {
            const Group& group = groups_[pieces_[item].first];
            const Expert& expert = *group.expert;
            const int64_t begin = pieces_[item].second, end = std::min(begin + INNER, expert.gate.rows);
            const int64_t count = (int64_t)group.rows.size();
            for (int which = 0; which < 2; ++which) {
                xs[which].clear();
                for (int64_t row : group.rows) xs[which].push_back(inputs(which ? expert.up.kind : expert.gate.kind, row));
            }
            if ((int64_t)gates.size() < count * INNER) gates.resize(count * INNER), ups.resize(count * INNER);
            expect(expert.up, begin);
            product(expert.gate, begin, end, xs[0].data(), count,
                    [&](int64_t n, int64_t m, float value) { gates[m * INNER + n - begin] = value; });
            if (item + team.size() < (int64_t)pieces_.size()) {
                const auto& [next, row] = pieces_[item + team.size()];
                expect(groups_[next].expert->gate, row);
            }
            product(expert.up, begin, end, xs[1].data(), count,
                    [&](int64_t n, int64_t m, float value) { ups[m * INNER + n - begin] = value; });
            swiglu(gates.data(), ups.data(), count * INNER);
            for (int64_t m = 0; m < count; ++m)
                for (int64_t n = begin; n < end; ++n)
                    group.hidden[m][position(expert.down.kind, n)] = gates[m * INNER + n - begin] * factor(expert.down.kind);
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
                if (&group < &groups_.back()) expect((&group)[1].expert->down, begin);
                else if (end + OUTER * (team.size() - 1) < outer) expect(groups_[0].expert->down, end + OUTER * (team.size() - 1));
                product(group.expert->down, begin, end, (const float* const*)group.hidden.data(), size,
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
                arrange(kind, x + m * inner, inner, arranged + (kind * count + m) * width);
        team.meet();
        blocks.up(team, [&](int64_t kind, int64_t row) { return arranged + (kind * count + row) * width; });
        team.meet();
        blocks.down(team, y, count, experts->down.rows);
    });
}
