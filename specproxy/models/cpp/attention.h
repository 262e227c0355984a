// Attention of rows over keys in pages (the layout of kernels/paged.py): each row has a list of keys in the order of
// their positions, and everything is summed along it, 16 keys at a time from a multiple of 16 on. So a row's result
// depends on its own position and keys alone.
#pragma once

#include "products.h"

constexpr Index MOST_WIDTH = 256;  // of a head
constexpr Index KEYS = 16;         // keys that are scored together, one a lane
constexpr Index SHARED_ROWS = 4;   // rows of one list that share what is read
constexpr int QUERIES = 4;         // that are computed together

// qkv: queries, keys, values of all heads. cos, sin [positions, rotated]: sin with the sign of the rotation's first
// half. q_norm, k_norm [width]: null where there are none. window: keys a row sees, itself included; 0: all.
struct Attention {
    Product qkv, o;
    const bf16 *cos, *sin;
    const float *q_norm, *k_norm;
    Index heads, kv_heads, width, rotated, window;
    float eps, scale;
};

// Rows of a step. positions, to [rows]: for the rotation, and slots of their keys. The rest is kernels/lists.py's, whose
// rows of no list get zeros. page, slots: slots of a page and of a plane.
struct Rows {
    Index count, page, slots;
    const Index *positions, *to, *table, *last, *first, *tail_from, *tail, *pages, *tails;
};

// One head x [width], normed where there is a weight, then rotated.
inline void turn(float* x, const float* norm, const Attention& a, Index position, bf16* out) {
    if (norm) norm_row(x, norm, a.width, a.eps, [&](Index i, __m512 v) { _mm512_storeu_ps(x + i, v); });
    const bf16 *cos = a.cos + position * a.rotated, *sin = a.sin + position * a.rotated;
    for (Index i = 0; i < a.rotated; i += LANES) {
        const __m512 other = _mm512_loadu_ps(x + (i < a.rotated / 2 ? i + a.rotated / 2 : i - a.rotated / 2));
        const __m512 across = _mm512_mul_ps(other, widen(sin + i));
        narrow(out + i, _mm512_fmadd_ps(_mm512_loadu_ps(x + i), widen(cos + i), across));
    }
    for (Index i = a.rotated; i < a.width; i += LANES) narrow(out + i, _mm512_loadu_ps(x + i));
}

// A masked NaN would reach other rows as 0 x NaN: NaN becomes zero, and what is infinite the largest bf16.
inline __m512 finite(__m512 x) {
    const __m512 most = _mm512_set1_ps(3.3895314e38f);
    const __m512 capped = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), most)), most);
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), capped);
}

// Queries of row t of qkv [rows, (Hq + 2 Hk) * W] to q [rows, Hq * W]; its keys and values to their slot of kv.
inline void place_row(const Attention& a, const Rows& r, Index t, float* qkv, bf16* q, bf16* kv) {
    float* row = qkv + t * a.qkv.outputs;
    const Index position = r.positions[t];
    for (Index h = 0; h < a.heads; h++) turn(row + h * a.width, a.q_norm, a, position, q + (t * a.heads + h) * a.width);
    for (Index h = 0; h < 2 * a.kv_heads; h++) {
        float* x = row + (a.heads + h) * a.width;
        bf16* to = kv + (h * r.slots + r.to[t]) * a.width;
        if (h < a.kv_heads) turn(x, a.k_norm, a, position, to);
        for (Index i = 0; i < a.width; i += LANES)
            narrow(to + i, finite(h < a.kv_heads ? widen(to + i) : _mm512_loadu_ps(x + i)));
    }
}

inline void transpose(__m512i* r) {  // 16 x 16 pairs of numbers
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            r[i + 2 * h] = _mm512_unpacklo_epi64(t[i + h], t[i + 2 + h]);
            r[i + 2 * h + 1] = _mm512_unpackhi_epi64(t[i + h], t[i + 2 + h]);
        }
    for (int i = 0; i < 4; i++)
        for (int h = 0; h < 2; h++) {
            t[i + 8 * h] = _mm512_shuffle_i32x4(r[i + 8 * h], r[i + 8 * h + 4], 0x88);
            t[i + 8 * h + 4] = _mm512_shuffle_i32x4(r[i + 8 * h], r[i + 8 * h + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

// Keys of one list as slots.
struct Keys {
    const Rows& r;
    const Index *pages, *tail;
    Index tail_from;

    Keys(const Rows& rows, Index t)
        : r(rows), pages(rows.pages + rows.table[t]), tail(rows.tails + rows.tail[t]), tail_from(rows.tail_from[t]) {}
    Index operator[](Index p) const {
        return p >= tail_from ? tail[p - tail_from] : pages[p / r.page] * r.page + p % r.page;
    }
};

// The first key that row t sees.
inline Index first_key(const Attention& a, const Rows& r, Index t) {
    return a.window ? std::max(r.first[t], r.last[t] - a.window + 1) : r.first[t];
}

// Products of M queries, `stride` numbers apart, with 16 keys, transposed: pair i of block w has numbers 32 w + 2 i and
// the next. Two sums a query, or each would wait for itself.
template <int M>
inline void score(const bf16* const* q, __m512i (*block)[16], Index width, __m512* sum) {
    __m512 even[M], odd[M];
    for (int m = 0; m < M; m++) even[m] = odd[m] = _mm512_setzero_ps();
    for (Index w = 0; w < width / 32; w++)
        for (Index i = 0; i < 16; i += 2)
            for (int m = 0; m < M; m++) {
                even[m] = _mm512_dpbf16_ps(even[m], (__m512bh)block[w][i], pair(q[m] + w * 32 + 2 * i));
                odd[m] = _mm512_dpbf16_ps(odd[m], (__m512bh)block[w][i + 1], pair(q[m] + w * 32 + 2 * i + 2));
            }
    for (int m = 0; m < M; m++) sum[m] = _mm512_add_ps(even[m], odd[m]);
}

// Scores [length] become weights; what they sum to.
inline float softmax(float* scores, Index length) {
    const __m512 none = _mm512_set1_ps(-__builtin_inff());
    __m512 most = none, sum = _mm512_setzero_ps();
    for (Index k = 0; k < length; k += LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + k));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (Index k = 0; k < length; k += LANES) {
        const __m512 s = _mm512_loadu_ps(scores + k);
        const __mmask16 seen = _mm512_cmp_ps_mask(s, none, _CMP_GT_OQ);
        const __m512 e = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(s, most)));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(scores + k, e);
    }
    return _mm512_reduce_add_ps(sum);
}

// Values of keys [from, to) with M queries' weights, 64 numbers of the head from `w` on.
template <int M>
inline void weigh(const Keys& keys, const bf16* values, Index width, Index from, Index to, const float* weights,
                  Index stride, Index w, __m512 (*sum)[4]) {
    for (int m = 0; m < M; m++)
        for (int h = 0; h < 4; h++) sum[m][h] = _mm512_setzero_ps();
    const int parts = static_cast<int>(std::min<Index>(4, (width - w) / LANES));
    for (Index k = from; k < to; k++) {
        const bf16* value = values + keys[k] * width + w;
        __m512 part[4];
        for (int h = 0; h < 4; h++) part[h] = h < parts ? widen(value + h * LANES) : _mm512_setzero_ps();
        for (int m = 0; m < M; m++) {
            const __m512 weight = _mm512_set1_ps(weights[m * stride + k - from]);
            for (int h = 0; h < 4; h++) sum[m][h] = _mm512_fmadd_ps(weight, part[h], sum[m][h]);
        }
    }
}

// Floats that `attend` needs of its own.
inline Index scores_room(const Attention& a, Index longest) {
    return SHARED_ROWS * (a.heads / a.kv_heads) * (longest + 2 * KEYS);
}

// Rows [row, row + count) of one list, key head `head`: q [rows, Hq * W] -> out, in the same form.
inline void attend(const Attention& a, const Rows& r, const bf16* kv, Index row, Index count, Index head, const bf16* q,
                   bf16* out, float* scores) {
    const Index width = a.width, group = a.heads / a.kv_heads, all = a.heads * width, queries = count * group;
    const bf16 *head_keys = kv + head * r.slots * width, *values = head_keys + a.kv_heads * r.slots * width;
    const Keys keys(r, row);
    const Index last = r.last[row + count - 1], from = first_key(a, r, row) / KEYS * KEYS;
    const Index length = (last - from) / KEYS * KEYS + KEYS;
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 none = _mm512_set1_ps(-__builtin_inff());
    const auto query = [&](Index i) { return (row + i / group) * all + (head * group + i % group) * width; };
    for (Index at = from; at <= last; at += KEYS) {
        __m512i block[MOST_WIDTH / 32][16];
        for (Index w = 0; w < width / 32; w++) {
            for (Index i = 0; i < KEYS; i++)
                block[w][i] = _mm512_loadu_si512(head_keys + keys[std::min(at + i, last)] * width + w * 32);
            transpose(block[w]);
        }
        const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(at)), lanes);
        in_tiles<QUERIES>(queries, [&]<int M>(Index i) {
            __m512 sum[M];
            const bf16* mine[M];
            for (int m = 0; m < M; m++) mine[m] = q + query(i + m);
            score<M>(mine, block, width, sum);
            for (int m = 0; m < M; m++) {
                const Index t = row + (i + m) / group;
                const __m512i low = _mm512_set1_epi32(static_cast<int>(first_key(a, r, t)));
                const __m512i high = _mm512_set1_epi32(static_cast<int>(r.last[t]));
                const __mmask16 seen = _mm512_cmple_epi32_mask(index, high) & _mm512_cmpge_epi32_mask(index, low);
                const __m512 scaled = _mm512_mul_ps(sum[m], _mm512_set1_ps(a.scale));
                _mm512_storeu_ps(scores + (i + m) * length + at - from, _mm512_mask_mov_ps(none, seen, scaled));
            }
        });
    }
    float totals[64];
    for (Index i = 0; i < queries; i++) totals[i] = softmax(scores + i * length, length);
    for (Index w = 0; w < width; w += 4 * LANES)
        in_tiles<QUERIES>(queries, [&]<int M>(Index i) {
            __m512 sum[M][4];
            weigh<M>(keys, values, width, from, last + 1, scores + i * length, length, w, sum);
            for (int m = 0; m < M; m++) {
                const __m512 part = _mm512_set1_ps(1.0f / totals[i + m]);
                bf16* to = out + query(i + m) + w;
                for (int h = 0; h < 4 && w + h * LANES < width; h++) narrow(to + h * LANES, _mm512_mul_ps(sum[m][h], part));
            }
        });
}

// How many rows from t on, at most SHARED_ROWS, read one list, ever further.
inline Index alike(const Rows& r, Index t) {
    Index n = 1;
    while (n < SHARED_ROWS && t + n < r.count && r.table[t + n] == r.table[t] && r.tail[t + n] == r.tail[t] &&
           r.tail_from[t + n] == r.tail_from[t] && r.first[t + n] == r.first[t] &&
           r.last[t + n] >= r.last[t + n - 1])
        n++;
    return n;
}
