// A step of a model of the Llama family, and the blocks it is made of, as functions of raw memory. models/library.py
// mirrors the structures and says what each field is.
//
// bf16 where the step reads and writes, float32 between: the residual stream, what the products sum up, softmax.
// Threads: one parallel region a call; a barrier wherever rows or outputs of other threads are read.
//
// Shapes: T rows, N rows that sample, D hidden width, Hq query heads, Hk key heads, W head width, I intermediate
// width, V vocabulary.
#include <vector>

#include "attention.h"

struct Layer {
    const float *input_norm, *post_norm;
    Attention attention;
    Product gate_up, down;
};

struct Model {
    Index layers, hidden;
    float eps;
    const bf16* embedding;
    const float* norm;
    Product head;
    const Layer* layer;
};

// depth: layers that run. ids [T]. wanted [N]: rows of the logits [N, V]. tapped: layers whose input is wanted (`layers`: what is behind the
// norm), states [taps, T, D]. kv: a buffer each layer.
struct Call {
    Rows rows;
    Index depth, wanted_count, taps;
    const Index *ids, *wanted, *tapped;
    bf16* const* kv;
    bf16 *logits, *states;
    int threads;
};

namespace {

enum Use { ROOMS, SCORES };

// Memory that a thread keeps between calls.
template <Use USE>
float* kept(size_t floats) {
    static thread_local std::vector<float> room;
    if (room.size() < floats) room.resize(floats);
    return room.data();
}

// Which rows go together through attention.
struct Items {
    std::vector<Index> starts, counts;
    Index longest = 0;

    explicit Items(const Rows& r) {
        for (Index t = 0, n; t < r.count; t += n) {
            n = r.table[t] < 0 ? 1 : alike(r, t);
            if (r.table[t] >= 0) {
                starts.push_back(t);
                counts.push_back(n);
            }
            for (Index i = t; i < t + n; i++) longest = std::max(longest, r.last[i]);
        }
    }
};

// All threads: x [T, inputs] -> attended [T, Hq * W]. qkv, q: room for what is between. Ends with a barrier.
void attend_rows(const Attention& a, const Rows& r, const Items& items, const bf16* x, bf16* kv, float* qkv, bf16* q,
                 bf16* attended) {
    product(a.qkv, x, r.count, [&](Index row, Index j, __m512 first, __m512 last) {
        float* to = qkv + row * a.qkv.outputs + j * PANEL;
        _mm512_storeu_ps(to, first);
        _mm512_storeu_ps(to + LANES, last);
    });
#pragma omp barrier
    for (Index t = share_from(r.count); t < share_to(r.count); t++) {
        place_row(a, r, t, qkv, q, kv);
        if (r.table[t] < 0) std::memset(attended + t * a.heads * a.width, 0, sizeof(bf16) * a.heads * a.width);
    }
#pragma omp barrier
    float* scores = kept<SCORES>(scores_room(a, items.longest));
    const Index count = static_cast<Index>(items.starts.size()) * a.kv_heads;
#pragma omp for schedule(dynamic, 1)
    for (Index i = 0; i < count; i++) {
        const Index item = i / a.kv_heads;
        attend(a, r, kv, items.starts[item], items.counts[item], i % a.kv_heads, q, attended, scores);
    }
}

inline void store_narrow(bf16* to, __m512 first, __m512 last) {
    narrow(to, first);
    narrow(to + LANES, last);
}

// Rooms of a call, parts of one allocation that the calling thread keeps.
struct Rooms {
    float *x, *qkv;
    bf16 *normed, *q, *attended, *gated;

    Rooms(Index rows, Index hidden, const Attention& a, Index intermediate) {
        const Index heads = a.heads * a.width, wide = std::max(hidden, a.qkv.inputs);
        const size_t floats = hidden + a.qkv.outputs, numbers = wide + 2 * heads + intermediate;
        x = kept<ROOMS>(rows * (floats + (numbers + 1) / 2));
        qkv = x + rows * hidden;
        normed = reinterpret_cast<bf16*>(qkv + rows * a.qkv.outputs);
        q = normed + rows * wide;
        attended = q + rows * heads;
        gated = attended + rows * heads;
    }
};

// All threads: this one's rows of x [T, D] behind a norm.
void norm_share(const float* x, const float* weight, Index rows, Index width, float eps, bf16* out) {
    for (Index t = share_from(rows); t < share_to(rows); t++)
        norm_row(x + t * width, weight, width, eps, [&](Index i, __m512 v) { narrow(out + t * width + i, v); });
}

// All threads: the layer on x [T, D], in place. Ends with a barrier.
void run_layer(const Layer& l, const Model& m, const Rows& r, const Items& items, bf16* kv, const Rooms& room) {
    const auto add = [&](Index row, Index j, __m512 first, __m512 last) {
        float* to = room.x + row * m.hidden + j * PANEL;
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), first));
        _mm512_storeu_ps(to + LANES, _mm512_add_ps(_mm512_loadu_ps(to + LANES), last));
    };
    norm_share(room.x, l.input_norm, r.count, m.hidden, m.eps, room.normed);
#pragma omp barrier
    attend_rows(l.attention, r, items, room.normed, kv, room.qkv, room.q, room.attended);
    product(l.attention.o, room.attended, r.count, add);
#pragma omp barrier
    norm_share(room.x, l.post_norm, r.count, m.hidden, m.eps, room.normed);
#pragma omp barrier
    gated_product(l.gate_up, room.normed, r.count, room.gated);
#pragma omp barrier
    product(l.down, room.gated, r.count, add);
#pragma omp barrier
}

}  // namespace

extern "C" {

// A whole step: logits and states of `c`, from its ids.
void run_step(const Model* model, const Call* call) {
    const Model& m = *model;
    const Call& c = *call;
    const Rows& r = c.rows;
    const Index width = m.hidden, intermediate = m.layer->down.inputs;
    const Items items(r);
    const Rooms room(std::max(r.count, c.wanted_count), width, m.layer->attention, std::max(width, intermediate));
#pragma omp parallel num_threads(c.threads)
    {
        const Index from = share_from(r.count), to = share_to(r.count);
        for (Index t = from; t < to; t++)
            for (Index i = 0; i < width; i += LANES)
                _mm512_storeu_ps(room.x + t * width + i, widen(m.embedding + c.ids[t] * width + i));
        for (Index n = 0; n < c.depth; n++) {
            for (Index i = 0; i < c.taps; i++)
                for (Index k = from * width; c.tapped[i] == n && k < to * width; k += LANES)
                    narrow(c.states + i * r.count * width + k, _mm512_loadu_ps(room.x + k));
            run_layer(m.layer[n], m, r, items, c.kv[n], room);
        }
        norm_share(room.x, m.norm, r.count, width, m.eps, room.normed);
        for (Index i = 0; i < c.taps; i++)
            if (c.tapped[i] == m.layers)
                std::memcpy(c.states + (i * r.count + from) * width, room.normed + from * width, sizeof(bf16) * (to - from) * width);
#pragma omp barrier
        bf16* chosen = room.gated;
        for (Index t = share_from(c.wanted_count); t < share_to(c.wanted_count); t++)
            std::memcpy(chosen + t * width, room.normed + c.wanted[t] * width, sizeof(bf16) * width);
#pragma omp barrier
        product(m.head, chosen, c.wanted_count, [&](Index row, Index j, __m512 first, __m512 last) {
            store_narrow(c.logits + row * m.head.outputs + j * PANEL, first, last);
        });
    }
}

// x [T, inputs] -> out [T, outputs].
void run_product(const Product* p, const bf16* x, Index rows, bf16* out, int threads) {
#pragma omp parallel num_threads(threads)
    product(*p, x, rows, [&](Index row, Index j, __m512 first, __m512 last) {
        store_narrow(out + row * p->outputs + j * PANEL, first, last);
    });
}

// RMSNorm of x [T, width] -> out.
void run_norm(const bf16* x, const float* weight, Index rows, Index width, float eps, bf16* out) {
    float* wide = kept<ROOMS>(width);
    for (Index t = 0; t < rows; t++) {
        for (Index i = 0; i < width; i += LANES) _mm512_storeu_ps(wide + i, widen(x + t * width + i));
        norm_row(wide, weight, width, eps, [&](Index i, __m512 v) { narrow(out + t * width + i, v); });
    }
}

// Attention [T, inputs] -> out [T, D], keys and values written to kv.
void run_attention(const Attention* a, const Rows* r, const bf16* x, bf16* kv, bf16* out, int threads) {
    const Items items(*r);
    const Rooms room(r->count, a->o.outputs, *a, 0);
#pragma omp parallel num_threads(threads)
    {
        attend_rows(*a, *r, items, x, kv, room.qkv, room.q, room.attended);
        product(a->o, room.attended, r->count, [&](Index row, Index j, __m512 first, __m512 last) {
            store_narrow(out + row * a->o.outputs + j * PANEL, first, last);
        });
    }
}

// down(silu(gate x) * up x): x [T, D] -> out.
void run_mlp(const Product* gate_up, const Product* down, const bf16* x, Index rows, bf16* out, int threads) {
    bf16* gated = reinterpret_cast<bf16*>(kept<ROOMS>((rows * down->inputs + 1) / 2));
#pragma omp parallel num_threads(threads)
    {
        gated_product(*gate_up, x, rows, gated);
#pragma omp barrier
        product(*down, gated, rows, [&](Index row, Index j, __m512 first, __m512 last) {
            store_narrow(out + row * down->outputs + j * PANEL, first, last);
        });
    }
}
}
