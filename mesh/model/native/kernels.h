/* Every computation on rows, written once against lanes.h; compiled by each kernels_*.c.
 *
 * A product with quantised weights is, as in llama.cpp, a sum over blocks of 32 of an exact integer dot product times
 * both blocks' scales. One order of additions for every output, whichever tile computes it: eight lanes over the blocks
 * in turn, the lanes' tree, then the sum of the leasts.
 */
#include "lanes.h"
#include "native.h"

#ifdef LANES_AVX2
#ifdef LANES_VNNI
#define TILE_ROWS 4 /* weight rows whose sums, times four activation rows, stay in registers */
#else
#define TILE_ROWS 2
#endif
#define UNROLL _Pragma("GCC unroll 4")
#define UNROLL_8 _Pragma("GCC unroll 8")
#else
#define UNROLL
#define UNROLL_8
#endif

/* --- element by element ------------------------------------------------------------------------------------- */

/* exp, to 1 unit in the last place (Cephes' expf); exp(-87) below, exp(88) above, NaN for NaN. */
INLINE f8 f8_exp(f8 x)
{
    x = f8_min(f8_set(88.0f), f8_max(f8_set(-87.0f), x));
    const f8 n = f8_round(f8_mul(x, f8_set(1.44269504088896341f)));
    const f8 r = f8_fma(n, f8_set(2.12194440e-4f), f8_fma(n, f8_set(-0.693359375f), x)); /* x - n log 2 */
    f8 p = f8_set(1.9875691500e-4f);
    p = f8_fma(p, r, f8_set(1.3981999507e-3f));
    p = f8_fma(p, r, f8_set(8.3334519073e-3f));
    p = f8_fma(p, r, f8_set(4.1665795894e-2f));
    p = f8_fma(p, r, f8_set(1.6666665459e-1f));
    p = f8_fma(p, r, f8_set(5.0000001201e-1f));
    p = f8_add(f8_fma(p, f8_mul(r, r), r), f8_set(1.0f));
    return f8_mul(p, f8_power_of_two(n));
}

INLINE f8 silu_times(f8 gate, f8 up)
{
    const f8 below = f8_add(f8_set(1.0f), f8_exp(f8_sub(f8_set(0.0f), gate)));
    return f8_mul(f8_div(gate, below), up);
}

TARGET static void swiglu(const float *gate, const float *up, int64_t n, float *out)
{
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) f8_store(out + k, silu_times(f8_load(gate + k), f8_load(up + k)));
    if (k < n) f8_store_first(out + k, silu_times(f8_load_first(gate + k, n - k), f8_load_first(up + k, n - k)), n - k);
}

TARGET static void norm(const float *x, const float *weight, float eps, int64_t n, float *out)
{
    f8 squares = f8_set(0.0f);
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) squares = f8_fma(f8_load(x + k), f8_load(x + k), squares);
    if (k < n) squares = f8_fma(f8_load_first(x + k, n - k), f8_load_first(x + k, n - k), squares);
    const float inverse = 1.0f / sqrtf(f8_sum(squares) / (float)n + eps);
    for (k = 0; k < n; k++) out[k] = x[k] * inverse * weight[k];
}

/* To 8-bit blocks of 32: scale = largest magnitude / 127. A value that is no number makes its block's scale NaN, so
 * that it shows in every result of its own row and nowhere else. */
TARGET static void quantise(struct activations *a, int64_t row)
{
    const int64_t blocks = a->columns / 32;
    const float *x = a->x + row * a->columns;
    int8_t *q = a->q + row * a->columns;
    for (int64_t b = 0; b < blocks; b++, x += 32, q += 32) {
        const f8 v[4] = {f8_load(x), f8_load(x + 8), f8_load(x + 16), f8_load(x + 24)};
        f8 highest = f8_set(0.0f), no_number = f8_set(0.0f);
        UNROLL for (int i = 0; i < 4; i++) {
            highest = f8_max(f8_abs(v[i]), highest);
            no_number = f8_add(no_number, f8_sub(v[i], v[i])); /* 0, or NaN */
        }
        float lanes[8], most = 0.0f;
        f8_store(lanes, highest);
        for (int i = 0; i < 8; i++) most = lanes[i] > most ? lanes[i] : most;
        const float scale = most / 127.0f + f8_sum(no_number);
        const f8 inverse = f8_set(most > 0.0f ? 127.0f / most : 0.0f);
        const b32 packed = b32_from_floats(f8_mul(v[0], inverse), f8_mul(v[1], inverse), f8_mul(v[2], inverse),
                                           f8_mul(v[3], inverse));
        static const int8_t ones[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
        const int64_t at = (row / 4 * blocks + b) * 4 + row % 4;
        b32_store(q, packed);
        a->scale[at] = scale;
        a->sum[at] = scale * f8_sum(b32_dot_unsigned(b32_load(ones), packed));
    }
}

/* --- products with a weight matrix --------------------------------------------------------------------------- */

struct unpacked {
    b32 q;
    float scale, least;
    int first, second; /* Q6_K's factors of the halves */
};

/* Block b of 32 weights of a row. `type` is a constant wherever this is inlined. */
INLINE struct unpacked unpack(const int type, const uint8_t *row, int64_t b)
{
    struct unpacked u = {.least = 0.0f, .first = 1, .second = 1};
    if (type == Q4_0) {
        const struct q4_0 *block = (const struct q4_0 *)row + b;
        u.q = b32_nibbles(block->q);
        u.scale = half(block->d);
        u.least = -8.0f * u.scale;
    } else if (type == Q4_1) {
        const struct q4_1 *block = (const struct q4_1 *)row + b;
        u.q = b32_nibbles(block->q);
        two_halves(&block->d, &u.scale, &u.least);
    } else if (type == Q8_0) {
        const struct q8_0 *block = (const struct q8_0 *)row + b;
        u.q = b32_load(block->q);
        u.scale = half(block->d);
    } else if (type == Q4_K) {
        const struct q4_k *block = (const struct q4_k *)row + b / 8;
        const int j = (int)(b % 8);
        int scale, least;
        q4_k_scale(block->scales, j, &scale, &least);
        u.q = b32_bits(block->q + 32 * (j / 2), j % 2 * 4, 15);
        u.scale = half(block->d) * (float)scale;
        u.least = -(half(block->dmin) * (float)least);
    } else { /* Q6_K: two halves of 128; in each, four runs of 32 share the bytes of the upper bits */
        const struct q6_k *block = (const struct q6_k *)row + b / 8;
        const int part = (int)(b % 8 / 4), j = (int)(b % 4);
        u.q = b32_six_bits(b32_bits(block->low + 64 * part + 32 * (j % 2), j / 2 * 4, 15),
                           b32_bits(block->high + 32 * part, 2 * j, 3));
        u.scale = half(block->d);
        u.first = block->scales[8 * part + 2 * j];
        u.second = block->scales[8 * part + 2 * j + 1];
    }
    return u;
}

INLINE f8 dot(const int type, const struct unpacked *u, b32 a)
{
    if (type == Q6_K) return b32_dot_halves(u->q, a, u->first, u->second);
    if (type == Q8_0) return b32_dot_signed(u->q, a);
    return b32_dot_unsigned(u->q, a);
}

INLINE void deliver(float *at, float value, int add) { *at = add ? *at + value : value; }

/* `height` weight rows times `width` activation rows: constants, so that all sums stay in registers. */
INLINE void quantised_tile(const int type, const int height, const int width, const struct matrix *w, int64_t row,
                           const struct activations *a, int64_t m, float *out, int64_t stride, int add)
{
    const int has_least = type == Q4_0 || type == Q4_1 || type == Q4_K;
    const int64_t blocks = w->columns / 32;
    const uint8_t *weights = w->data + row * w->row_bytes;
    const int8_t *q = a->q + m * a->columns;
    const float *scales = a->scale + m / 4 * blocks * 4, *sums = a->sum + m / 4 * blocks * 4; /* of the group of m */
    const int64_t in_group = m % 4;
    f8 lanes[4][4];
    f4 least[4]; /* of all four rows of the group, wanted or not */
    UNROLL for (int r = 0; r < height; r++) {
        least[r] = f4_set(0.0f);
        UNROLL for (int c = 0; c < width; c++) lanes[r][c] = f8_set(0.0f);
    }
    for (int64_t b = 0; b < blocks; b++, scales += 4, sums += 4) {
        UNROLL for (int r = 0; r < height; r++) {
            const struct unpacked u = unpack(type, weights + r * w->row_bytes, b);
            const f8 scale = f8_set(u.scale);
            UNROLL for (int c = 0; c < width; c++) {
                const f8 exact = dot(type, &u, b32_load(q + c * a->columns + 32 * b));
                lanes[r][c] = f8_fma(exact, f8_mul(scale, f8_set(scales[in_group + c])), lanes[r][c]);
            }
            if (has_least) least[r] = f4_fma(f4_set(u.least), f4_load(sums), least[r]);
        }
    }
    UNROLL for (int r = 0; r < height; r++) {
        float leasts[4];
        f4_store(leasts, least[r]);
        UNROLL for (int c = 0; c < width; c++)
            deliver(out + (m + c) * stride + row + r, f8_sum(lanes[r][c]) + leasts[in_group + c], add);
    }
}

/* Eight weights, or the first n with zeros after them. */
INLINE f8 wide(const int type, const uint8_t *row, int64_t k, int64_t n)
{
    const int size = type == F32 ? 4 : 2;
    uint8_t padded[32] = {0};
    const uint8_t *at = row + k * size;
    if (n < 8) at = memcpy(padded, at, (size_t)(n * size));
    return type == F32 ? f8_load((const float *)at) : type == F16 ? f8_from_half(at) : f8_from_bfloat(at);
}

INLINE void plain_tile(const int type, const int height, const int width, const struct matrix *w, int64_t row,
                       const struct activations *a, int64_t m, float *out, int64_t stride, int add)
{
    const int64_t n = w->columns;
    const uint8_t *weights = w->data + row * w->row_bytes;
    const float *x = a->x + m * a->columns;
    f8 lanes[4][4], given[4];
    UNROLL for (int r = 0; r < height; r++) UNROLL for (int c = 0; c < width; c++) lanes[r][c] = f8_set(0.0f);
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) {
        UNROLL for (int c = 0; c < width; c++) given[c] = f8_load(x + c * a->columns + k);
        UNROLL for (int r = 0; r < height; r++) {
            const f8 weight = wide(type, weights + r * w->row_bytes, k, 8);
            UNROLL for (int c = 0; c < width; c++) lanes[r][c] = f8_fma(weight, given[c], lanes[r][c]);
        }
    }
    if (k < n) {
        UNROLL for (int r = 0; r < height; r++) UNROLL for (int c = 0; c < width; c++)
            lanes[r][c] = f8_fma(wide(type, weights + r * w->row_bytes, k, n - k),
                                 f8_load_first(x + c * a->columns + k, n - k), lanes[r][c]);
    }
    UNROLL for (int r = 0; r < height; r++) UNROLL for (int c = 0; c < width; c++)
        deliver(out + (m + c) * stride + row + r, f8_sum(lanes[r][c]), add);
}

INLINE void multiply_as(const int type, const struct matrix *w, int64_t first, int64_t last,
                        const struct activations *a, float *out, int64_t stride, int add)
{
#define TILE(height, width)                                                                  \
    (type <= BF16 ? plain_tile(type, height, width, w, row, a, m, out, stride, add)          \
                  : quantised_tile(type, height, width, w, row, a, m, out, stride, add))
    int64_t row = first, m = 0;
#ifndef LANES_AVX2 /* plain C has no registers to keep a tile in */
    for (; row < last; row++)
        for (m = 0; m < a->rows; m++) TILE(1, 1);
#else
    /* One row of activations leaves nothing but weights to read: strictly in order, or the processor's own prefetching
     * loses the thread (Q8_0 beyond the caches: four rows at a time took four times as long). */
    const int64_t tall = a->rows == 1 ? 1 : TILE_ROWS;
    for (int64_t taken; row < last; row += taken) {
        taken = row + tall <= last ? tall : 1;
        if (tall > 1) /* the rows of the next tile, in order, while this one computes */
            for (int64_t at = taken * w->row_bytes; at < 2 * taken * w->row_bytes; at += 64)
                __builtin_prefetch(w->data + row * w->row_bytes + at);
        for (m = 0; m + 4 <= a->rows; m += 4) taken > 1 ? TILE(TILE_ROWS, 4) : TILE(1, 4);
        for (; m + 2 <= a->rows; m += 2) taken > 1 ? TILE(TILE_ROWS, 2) : TILE(1, 2);
        for (; m < a->rows; m++) taken > 1 ? TILE(TILE_ROWS, 1) : TILE(1, 1);
    }
#endif
#undef TILE
}

TARGET static void multiply(const struct matrix *w, int64_t first, int64_t last, const struct activations *a, float *out,
                            int64_t stride, int add)
{
    switch (w->type) {
#define CASE(type) case type: multiply_as(type, w, first, last, a, out, stride, add); break;
        CASE(F32) CASE(F16) CASE(BF16) CASE(Q4_0) CASE(Q4_1) CASE(Q8_0) CASE(Q4_K) CASE(Q6_K)
#undef CASE
    }
}

/* One row as floats: exact as gguf's reference decoder has it. */
TARGET static void dequantise(const struct matrix *w, int64_t row, float *out)
{
    const uint8_t *weights = w->data + row * w->row_bytes;
    if (w->type <= BF16) {
        for (int64_t k = 0; k < w->columns; k += 8) {
            const int64_t n = w->columns - k < 8 ? w->columns - k : 8;
            f8_store_first(out + k, w->type == F32   ? wide(F32, weights, k, n)
                                    : w->type == F16 ? wide(F16, weights, k, n)
                                                     : wide(BF16, weights, k, n), n);
        }
        return;
    }
    for (int64_t b = 0; b < w->columns / 32; b++) {
        const struct unpacked u = unpack(w->type, weights, b);
        int8_t q[32];
        b32_store(q, u.q);
        for (int k = 0; k < 32; k++)
            out[32 * b + k] = u.scale * (float)(k < 16 ? u.first : u.second) * (float)q[k] + u.least;
    }
}

/* --- attention ------------------------------------------------------------------------------------------------ */

/* `runs` times eight dimensions of the weighted sum of values, each position added in turn. */
INLINE void weigh(const int runs, const float *weights, float inverse, const float *values, int64_t length,
                  int64_t head_dim, float *out)
{
    f8 sum[8];
    UNROLL_8 for (int i = 0; i < runs; i++) sum[i] = f8_set(0.0f);
    for (int64_t s = 0; s < length; s++) {
        const f8 weight = f8_set(weights[s]);
        UNROLL_8 for (int i = 0; i < runs; i++)
            sum[i] = f8_fma(weight, f8_load(values + s * head_dim + 8 * i), sum[i]);
    }
    UNROLL_8 for (int i = 0; i < runs; i++) f8_store(out + 8 * i, f8_mul(sum[i], f8_set(inverse)));
}

TARGET static void attend(const float *query, const float *keys, const float *values, int64_t length, int64_t head_dim,
                          float scale, float *scores, float *out)
{
    const int64_t whole = head_dim / 8 * 8, rest = head_dim - whole;
    float highest = -INFINITY;
    for (int64_t s = 0; s < length; s++) {
        const float *key = keys + s * head_dim;
        f8 sum = f8_set(0.0f);
        for (int64_t d = 0; d < whole; d += 8) sum = f8_fma(f8_load(query + d), f8_load(key + d), sum);
        if (rest) sum = f8_fma(f8_load_first(query + whole, rest), f8_load_first(key + whole, rest), sum);
        scores[s] = f8_sum(sum) * scale;
        highest = scores[s] > highest ? scores[s] : highest;
    }
    /* Sums run over lanes by position, so a session's later tokens never change how earlier ones were added. */
    f8 total = f8_set(0.0f);
    for (int64_t s = 0; s < length; s += 8) {
        f8_store(scores + s, f8_exp(f8_sub(f8_load(scores + s), f8_set(highest))));
        for (int64_t past = length; past < s + 8; past++) scores[past] = 0.0f;
        total = f8_add(total, f8_load(scores + s));
    }
    const float inverse = 1.0f / f8_sum(total);
    int64_t d = 0;
    for (; d + 64 <= head_dim; d += 64) weigh(8, scores, inverse, values + d, length, head_dim, out + d);
    for (; d + 8 <= head_dim; d += 8) weigh(1, scores, inverse, values + d, length, head_dim, out + d);
    for (; d < head_dim; d++) {
        float sum = 0.0f;
        for (int64_t s = 0; s < length; s++) sum = __builtin_fmaf(scores[s], values[s * head_dim + d], sum);
        out[d] = sum * inverse;
    }
}

const struct kernels KERNELS = {norm, quantise, swiglu, multiply, attend, dequantise};
