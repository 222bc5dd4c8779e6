/* The native stage: what Python hands over, and what the two instruction sets provide.
 *
 * Every structure here is mirrored, field by field, by mesh/model/native/library.py. Pointers are borrowed: the caller
 * keeps weights, caches, inputs and outputs alive during a call, and nothing is kept after it.
 */
#ifndef MESH_NATIVE_H
#define MESH_NATIVE_H

#include <stdint.h>

/* Raised when a structure or the order of a sum changes: part of the kernel id, checked when the library is loaded. */
#define NATIVE_VERSION 1

enum type { F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K };
enum isa { SCALAR, AVX2, AVX512 };

/* Row-major, [rows, columns]; block types as GGML lays them out. */
struct matrix {
    const uint8_t *data;
    int64_t row_bytes;
    int32_t type, rows, columns, unused;
};

struct layer {
    const float *attention_norm, *mlp_norm; /* [hidden] */
    struct matrix query, key, value, output, gate, up, down;
};

struct stage {
    int32_t hidden, intermediate, heads, kv_heads, head_dim, num_layers;
    float norm_eps, unused;
    const float *frequencies; /* [head_dim / 2], radians per token */
    const struct layer *layers;
    struct matrix embedding; /* data is NULL unless the stage is first */
    const float *final_norm; /* NULL unless the stage is last, as is head.data */
    struct matrix head;
};

/* Some tokens of one session; exactly one of ids and input is given. */
struct step {
    float *cache;         /* [layers, keys | values, kv_heads, max_tokens, head_dim] */
    int64_t max_tokens;
    int64_t position;     /* of the first token: how many the cache holds */
    int64_t num_tokens;
    const int64_t *ids;   /* [num_tokens] */
    const float *input;   /* [num_tokens, hidden] */
    float *output;        /* [num_tokens, hidden], or NULL */
    int64_t sample;       /* on the last stage: whether to give the logits of the last token */
};

/* Activations of a batch, as they are and, for quantised weights, as 8-bit blocks of 32.
 * Scales and sums lie in groups of four rows, so that four rows' values of a block are one load. */
struct activations {
    float *x;     /* [rows, columns] */
    int8_t *q;    /* [rows, columns] */
    float *scale; /* [rows / 4, columns / 32, 4] */
    float *sum;   /* as scale: scale times the sum of the block's integers */
    int64_t rows, columns;
};

/* One instruction set. All give the same bits: see lanes.h. */
struct kernels {
    void (*norm)(const float *x, const float *weight, float eps, int64_t n, float *out);
    void (*quantise)(struct activations *a, int64_t row);
    void (*swiglu)(const float *gate, const float *up, int64_t n, float *out);
    /* out[m * stride + r] (+)= weight row r . activations row m, for rows [first, last) and every m */
    void (*multiply)(const struct matrix *w, int64_t first, int64_t last, const struct activations *a, float *out,
                     int64_t stride, int add);
    /* One query against the first `length` keys and values; scores is scratch of `length` + 8 floats. */
    void (*attend)(const float *query, const float *keys, const float *values, int64_t length, int64_t head_dim,
                   float scale, float *scores, float *out);
    void (*dequantise)(const struct matrix *w, int64_t row, float *out);
};

extern const struct kernels native_scalar;
#if defined(__x86_64__)
extern const struct kernels native_avx2, native_avx512;
#endif

#endif
