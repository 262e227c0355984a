// Products, norms and what belongs to one row of numbers. Every result is one fixed sum over its own row's inputs, in
// ascending order: which other rows are there, and which thread computes it, changes no bit.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

using bf16 = uint16_t;
using Index = int64_t;

constexpr Index LANES = 16;   // floats of a register
constexpr Index PANEL = 32;   // outputs that are summed together: two registers a row
constexpr int TILE = 8;        // rows that share a load of weights: their sums fill half of the registers

// weight: [outputs / PANEL][inputs / 2][PANEL][2], pairs of inputs as vdpbf16ps takes them. bias [outputs] or null.
struct Product {
    const bf16* weight;
    const float* bias;
    Index inputs, outputs;
};

inline __m512 widen(const bf16* x) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void narrow(bf16* to, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}

inline __m512bh halves(const void* x) { return (__m512bh)_mm512_loadu_si512(x); }

// Two neighbours, in every lane.
inline __m512bh pair(const bf16* x) {
    int32_t both;
    std::memcpy(&both, x, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

// e^x: 2^n e^r with |r| <= ln 2 / 2, a polynomial of degree six (Cephes' expf).
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.3f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
    y = _mm512_add_ps(_mm512_fmadd_ps(y, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

// M rows x [inputs] with panel j: sums of its first and its last 16 outputs.
template <int M>
inline void sums(const Product& p, const bf16* x, Index j, __m512 (*sum)[2]) {
    const bf16* w = p.weight + j * PANEL * p.inputs;
    for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = _mm512_setzero_ps();
    for (Index k = 0; k < p.inputs; k += 2, w += 2 * PANEL) {
        const __m512bh first = halves(w), last = halves(w + PANEL);
        for (int m = 0; m < M; m++) {
            const __m512bh inputs = pair(x + m * p.inputs + k);
            sum[m][0] = _mm512_dpbf16_ps(sum[m][0], first, inputs);
            sum[m][1] = _mm512_dpbf16_ps(sum[m][1], last, inputs);
        }
    }
    if (p.bias)
        for (int m = 0; m < M; m++)
            for (int h = 0; h < 2; h++)
                sum[m][h] = _mm512_add_ps(sum[m][h], _mm512_loadu_ps(p.bias + j * PANEL + h * LANES));
}

// Calls work<M>(row) for all rows, M at a time: MOST, and what is left.
template <int MOST, class Work>
inline void in_tiles(Index rows, const Work& work, Index row = 0) {
    for (; row + MOST <= rows; row += MOST) work.template operator()<MOST>(row);
    if constexpr (MOST > 1)
        if (row < rows) in_tiles<MOST - 1>(rows, work, row);
}

// This thread's share of `count` things.
inline Index share_from(Index count) { return count * omp_get_thread_num() / omp_get_num_threads(); }
inline Index share_to(Index count) { return count * (omp_get_thread_num() + 1) / omp_get_num_threads(); }

// This thread's panels of x [rows, inputs]: store(row, panel, first 16 outputs, last 16).
template <class Store>
void product(const Product& p, const bf16* x, Index rows, const Store& store) {
    const Index panels = p.outputs / PANEL;
    for (Index j = share_from(panels); j < share_to(panels); j++)
        in_tiles<TILE>(rows, [&]<int M>(Index row) {
            __m512 sum[M][2];
            sums<M>(p, x + row * p.inputs, j, sum);
            for (int m = 0; m < M; m++) store(row + m, j, sum[m][0], sum[m][1]);
        });
}

inline __m512 silu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// This thread's share of silu(gate x) * up x -> out [rows, outputs / 2]; the product has the gates first.
inline void gated_product(const Product& p, const bf16* x, Index rows, bf16* out) {
    const Index width = p.outputs / 2, panels = width / PANEL;
    for (Index j = share_from(panels); j < share_to(panels); j++)
        in_tiles<TILE>(rows, [&]<int M>(Index row) {
            __m512 gate[M][2], up[M][2];
            sums<M>(p, x + row * p.inputs, j, gate);
            sums<M>(p, x + row * p.inputs, panels + j, up);
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++)
                    narrow(out + (row + m) * width + j * PANEL + h * LANES, _mm512_mul_ps(silu(gate[m][h]), up[m][h]));
        });
}

inline __m512 inverse_rms(const float* x, Index width, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (Index i = 0; i < width; i += LANES) {
        const __m512 v = _mm512_loadu_ps(x + i);
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    return _mm512_set1_ps(1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(sum) / static_cast<float>(width) + eps));
}

// RMSNorm of one row x [width]; part i of it goes to store(i, 16 numbers).
template <class Store>
inline void norm_row(const float* x, const float* weight, Index width, float eps, const Store& store) {
    const __m512 factor = inverse_rms(x, width, eps);
    for (Index i = 0; i < width; i += LANES)
        store(i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor), _mm512_loadu_ps(weight + i)));
}
