// Vectors of V32_LANES floats in the compiler's own vector types: one source for AVX2, AVX-512, NEON and plain SSE.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef V32_LANES
#if defined(__AVX512F__)
#define V32_LANES 16
#elif defined(__AVX__)
#define V32_LANES 8
#else
#define V32_LANES 4
#endif
#endif

namespace v32 {

constexpr int LANES = V32_LANES;
// Four vectors: what one vector of FP8 codes decodes to, and the unit in which rows are padded.
constexpr int GROUP = 4 * LANES;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int16_t Halves __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef float LooseFloats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t LooseWords __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

static inline Floats load(const float* p) { return *(const LooseFloats*)p; }
static inline Words load_words(const void* p) { return *(const LooseWords*)p; }
static inline void store(float* p, Floats v) { *(LooseFloats*)p = v; }
static inline void store(uint32_t* p, Words v) { *(LooseWords*)p = v; }

// Without this the compiler reads a value from memory wherever it is used, and loads are what products wait for.
static inline void keep(Floats& v) {
#if defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
}

static inline Floats splat(float x) { return x - Floats{}; }

// sum += a * b with one rounding. Left to itself a compiler fuses in some tiles and not in others.
static inline void add_product(Floats& sum, Floats a, Floats b) {
#if defined(__AVX512F__) && V32_LANES == 16
    sum = (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__) && V32_LANES == 8
    sum = (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__aarch64__) && V32_LANES == 4
    sum = (Floats)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    sum += a * b;
#endif
}

// The same with a vector in memory. In assembly: GCC would move the sum to another register, and then to memory.
static inline void add_product(Floats& sum, Floats a, const float* b) {
#if defined(__FMA__) && V32_LANES == 8
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "m"(*(const LooseFloats*)b));
#else
    add_product(sum, a, load(b));
#endif
}

typedef float Four __attribute__((vector_size(16)));

#if defined(__clang__)
#define V32_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Order __attribute__((vector_size(16)));
#define V32_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

// Halves are added to each other until one value is left; the order is the same everywhere.
static inline Four sum_to_four(Floats v) {
#if defined(__AVX__) && V32_LANES == 8
    return (Four)_mm256_castps256_ps128((__m256)v) + (Four)_mm256_extractf128_ps((__m256)v, 1);
#else
    Four parts[LANES / 4];
    memcpy(parts, &v, sizeof v);
    for (int half = LANES / 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    return parts[0];
#endif
}

static inline float sum(Floats v) {
    const Four four = sum_to_four(v), twos = four + V32_SHUFFLE(four, four, 2, 3, 0, 1);
    return twos[0] + twos[1];
}

// The same of four vectors at once.
static inline Four sums(Floats a, Floats b, Floats c, Floats d) {
    const Four fours[4] = {sum_to_four(a), sum_to_four(b), sum_to_four(c), sum_to_four(d)};
    const Four ab = V32_SHUFFLE(fours[0], fours[1], 0, 1, 4, 5) + V32_SHUFFLE(fours[0], fours[1], 2, 3, 6, 7);
    const Four cd = V32_SHUFFLE(fours[2], fours[3], 0, 1, 4, 5) + V32_SHUFFLE(fours[2], fours[3], 2, 3, 6, 7);
    return V32_SHUFFLE(ab, cd, 0, 2, 4, 6) + V32_SHUFFLE(ab, cd, 1, 3, 5, 7);
}

static inline int64_t padded(int64_t size) { return (size + GROUP - 1) / GROUP * GROUP; }

// Scratch memory at the border of a cache line, without values.
template <class T>
class Scratch {
  public:
    explicit Scratch(int64_t size) : data_((T*)aligned_alloc(64, (size * sizeof(T) + 127) / 64 * 64)) {
        if (!data_) throw std::bad_alloc();
    }
    ~Scratch() { free(data_); }
    Scratch(const Scratch&) = delete;
    T* operator+(int64_t index) const { return data_ + index; }
    T& operator[](int64_t index) const { return data_[index]; }

  private:
    T* data_;
};

static inline Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
static inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// e^x within 2 units in the last place: 2^n e^r with |r| <= ln(2)/2 and a polynomial for e^r. Below -87 it is e^-87,
// above 88 e^88.
static inline Floats exponential(Floats x) {
    x = minimum(maximum(x, splat(-87.0f)), splat(88.0f));
    const Floats shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats n = x * 1.44269504f + shifter - shifter;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return p * (Floats)power;
}

static inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

static inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

}  // namespace v32
