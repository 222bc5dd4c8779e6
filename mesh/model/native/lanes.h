/* Eight floats, and 32 small integers, that are added in a fixed order whatever the machine has.
 *
 * kernels.h is written once against these operations and compiled once for each instruction set. Each operation rounds
 * exactly as IEEE 754 says (fused multiply-add included), so both compilations give the same bits: results depend
 * neither on the instruction set nor, as every output has sums of its own, on batch, chunk, cut or thread count.
 *
 * Define LANES_AVX2 before inclusion for AVX2 + FMA + F16C, LANES_VNNI as well for AVX-512's byte products and its
 * 32 registers (of 32 bytes: wider ones would be other lanes, so other bits); otherwise plain C.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "blocks.h"

#ifdef LANES_AVX2

#include <immintrin.h>

#ifdef LANES_VNNI
#define TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")))
#else
#define TARGET __attribute__((target("avx2,fma,f16c")))
#endif
#define INLINE static inline TARGET __attribute__((always_inline))

typedef __m256 f8;
typedef __m128 f4;
typedef __m256i b32; /* 32 bytes */

INLINE f8 f8_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void f8_store(float *p, f8 a) { _mm256_storeu_ps(p, a); }
INLINE f8 f8_set(float a) { return _mm256_set1_ps(a); }
INLINE f8 f8_add(f8 a, f8 b) { return _mm256_add_ps(a, b); }
INLINE f8 f8_sub(f8 a, f8 b) { return _mm256_sub_ps(a, b); }
INLINE f8 f8_mul(f8 a, f8 b) { return _mm256_mul_ps(a, b); }
INLINE f8 f8_div(f8 a, f8 b) { return _mm256_div_ps(a, b); }
INLINE f8 f8_fma(f8 a, f8 b, f8 c) { return _mm256_fmadd_ps(a, b, c); }
INLINE f8 f8_max(f8 a, f8 b) { return _mm256_max_ps(a, b); } /* b if either is a NaN */
INLINE f8 f8_min(f8 a, f8 b) { return _mm256_min_ps(a, b); }
INLINE f8 f8_abs(f8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE f8 f8_round(f8 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE f8 f8_power_of_two(f8 n) /* n: whole, from -126 to 127 */
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE f8 f8_from_half(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE f8 f8_from_bfloat(const uint8_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE float half(uint16_t h) { return _cvtsh_ss(h); }
INLINE void two_halves(const uint16_t *p, float *first, float *second)
{
    int both;
    memcpy(&both, p, sizeof both);
    const __m128 wide = _mm_cvtph_ps(_mm_cvtsi32_si128(both));
    *first = _mm_cvtss_f32(wide);
    *second = _mm_cvtss_f32(_mm_movehdup_ps(wide));
}
INLINE float f8_sum(f8 a) /* ((0+4) + (2+6)) + ((1+5) + (3+7)) */
{
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

INLINE f4 f4_load(const float *p) { return _mm_loadu_ps(p); }
INLINE void f4_store(float *p, f4 a) { _mm_storeu_ps(p, a); }
INLINE f4 f4_set(float a) { return _mm_set1_ps(a); }
INLINE f4 f4_fma(f4 a, f4 b, f4 c) { return _mm_fmadd_ps(a, b, c); }

INLINE b32 b32_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void b32_store(void *p, b32 a) { _mm256_storeu_si256((__m256i *)p, a); }
INLINE b32 b32_nibbles(const uint8_t *p) /* 16 low nibbles, then the 16 high ones */
{
    const __m128i both = _mm_loadu_si128((const __m128i *)p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(both, 4), both), _mm256_set1_epi8(15));
}
INLINE b32 b32_bits(const uint8_t *p, int shift, int mask) /* of 32 bytes */
{
    const __m256i moved = _mm256_srl_epi16(b32_load(p), _mm_cvtsi32_si128(shift));
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)mask));
}
INLINE b32 b32_six_bits(b32 low, b32 high) /* low | high << 4, less 32 */
{
    return _mm256_sub_epi8(_mm256_or_si256(low, _mm256_slli_epi16(high, 4)), _mm256_set1_epi8(32));
}
INLINE b32 b32_from_floats(f8 a, f8 b, f8 c, f8 d) /* rounded to nearest even */
{
    const __m256i ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    const __m256i cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
}
/* Lane i is the sum of the products of bytes 4i to 4i + 3, as a float. No product pair leaves 16 bits:
 * w is at most 15 unsigned or 128 in magnitude, a at most 127. */
INLINE f8 b32_dot_unsigned(b32 w, b32 a)
{
#ifdef LANES_VNNI
    return _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(_mm256_setzero_si256(), w, a));
#else
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
#endif
}
INLINE f8 b32_dot_signed(b32 w, b32 a)
{
    return b32_dot_unsigned(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}
INLINE f8 b32_dot_halves(b32 w, b32 a, int first, int second) /* each half's products times its factor */
{
    const __m256i factors = _mm256_set_m128i(_mm_set1_epi16((short)second), _mm_set1_epi16((short)first));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, factors));
}

#else

#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define EACH_LANE for (int i = 0; i < 8; i++)

typedef struct { float v[8]; } f8;
typedef struct { float v[4]; } f4;
typedef struct { int8_t v[32]; } b32;

INLINE f8 f8_load(const float *p) { f8 r; memcpy(r.v, p, sizeof r.v); return r; }
INLINE void f8_store(float *p, f8 a) { memcpy(p, a.v, sizeof a.v); }
INLINE f8 f8_set(float a) { f8 r; EACH_LANE r.v[i] = a; return r; }
INLINE f8 f8_add(f8 a, f8 b) { EACH_LANE a.v[i] += b.v[i]; return a; }
INLINE f8 f8_sub(f8 a, f8 b) { EACH_LANE a.v[i] -= b.v[i]; return a; }
INLINE f8 f8_mul(f8 a, f8 b) { EACH_LANE a.v[i] *= b.v[i]; return a; }
INLINE f8 f8_div(f8 a, f8 b) { EACH_LANE a.v[i] /= b.v[i]; return a; }
INLINE f8 f8_fma(f8 a, f8 b, f8 c) { EACH_LANE c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]); return c; }
INLINE f8 f8_max(f8 a, f8 b) { EACH_LANE a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE f8 f8_min(f8 a, f8 b) { EACH_LANE a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE f8 f8_abs(f8 a) { EACH_LANE a.v[i] = fabsf(a.v[i]); return a; }
INLINE f8 f8_round(f8 a) { EACH_LANE a.v[i] = nearbyintf(a.v[i]); return a; }
INLINE f8 f8_power_of_two(f8 n)
{
    EACH_LANE n.v[i] = bits_to_float((uint32_t)((n.v[i] == n.v[i] ? (int)n.v[i] : 0) + 127) << 23);
    return n;
}
INLINE uint16_t u16_load(const uint8_t *p) { uint16_t r; memcpy(&r, p, sizeof r); return r; }
INLINE f8 f8_from_half(const uint8_t *p) { f8 r; EACH_LANE r.v[i] = half_to_float(u16_load(p + 2 * i)); return r; }
INLINE f8 f8_from_bfloat(const uint8_t *p)
{
    f8 r;
    EACH_LANE r.v[i] = bits_to_float((uint32_t)u16_load(p + 2 * i) << 16);
    return r;
}
INLINE float half(uint16_t h) { return half_to_float(h); }
INLINE void two_halves(const uint16_t *p, float *first, float *second) { *first = half(p[0]), *second = half(p[1]); }
INLINE float f8_sum(f8 a)
{
    const float *v = a.v;
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

INLINE f4 f4_load(const float *p) { f4 r; memcpy(r.v, p, sizeof r.v); return r; }
INLINE void f4_store(float *p, f4 a) { memcpy(p, a.v, sizeof a.v); }
INLINE f4 f4_set(float a) { return (f4){{a, a, a, a}}; }
INLINE f4 f4_fma(f4 a, f4 b, f4 c)
{
    for (int i = 0; i < 4; i++) c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}

INLINE b32 b32_load(const void *p) { b32 r; memcpy(r.v, p, sizeof r.v); return r; }
INLINE void b32_store(void *p, b32 a) { memcpy(p, a.v, sizeof a.v); }
INLINE b32 b32_nibbles(const uint8_t *p)
{
    b32 r;
    for (int i = 0; i < 16; i++) r.v[i] = p[i] & 15, r.v[16 + i] = p[i] >> 4;
    return r;
}
INLINE b32 b32_bits(const uint8_t *p, int shift, int mask)
{
    b32 r;
    for (int i = 0; i < 32; i++) r.v[i] = (int8_t)(p[i] >> shift & mask);
    return r;
}
INLINE b32 b32_six_bits(b32 low, b32 high)
{
    for (int i = 0; i < 32; i++) low.v[i] = (int8_t)((low.v[i] | high.v[i] << 4) - 32);
    return low;
}
INLINE int8_t byte(float a) { return !(a < 127) ? 127 : !(a > -128) ? -128 : (int8_t)nearbyintf(a); }
INLINE b32 b32_from_floats(f8 a, f8 b, f8 c, f8 d)
{
    b32 r;
    EACH_LANE r.v[i] = byte(a.v[i]), r.v[8 + i] = byte(b.v[i]), r.v[16 + i] = byte(c.v[i]), r.v[24 + i] = byte(d.v[i]);
    return r;
}
INLINE f8 b32_dot_halves(b32 w, b32 a, int first, int second)
{
    f8 r;
    EACH_LANE {
        int sum = 0;
        for (int k = 4 * i; k < 4 * i + 4; k++) sum += w.v[k] * a.v[k];
        r.v[i] = (float)(sum * (i < 4 ? first : second));
    }
    return r;
}
INLINE f8 b32_dot_unsigned(b32 w, b32 a) { return b32_dot_halves(w, a, 1, 1); }
INLINE f8 b32_dot_signed(b32 w, b32 a) { return b32_dot_halves(w, a, 1, 1); }

#endif

/* The first n of eight, the rest zero. */
INLINE f8 f8_load_first(const float *p, int64_t n)
{
    float padded[8] = {0};
    memcpy(padded, p, (size_t)n * sizeof *p);
    return f8_load(padded);
}
INLINE void f8_store_first(float *p, f8 a, int64_t n)
{
    float all[8];
    f8_store(all, a);
    memcpy(p, all, (size_t)n * sizeof *p);
}
