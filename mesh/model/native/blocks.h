/* GGML's block formats (ggml-common.h), and a block of 32 weights as the dot products want it.
 *
 * A weight is factor * q + least, where factor is scale * sub[k / 16]. Q6_K alone has two integer factors in 32 weights;
 * the others have 1 and 1. Q4_0's offset of -8 is its least, so that its integers stay unsigned like Q4_1's.
 */
#ifndef MESH_BLOCKS_H
#define MESH_BLOCKS_H

#include <stdint.h>
#include <string.h>

struct q4_0 { uint16_t d; uint8_t q[16]; };
struct q4_1 { uint16_t d, m; uint8_t q[16]; };
struct q8_0 { uint16_t d; int8_t q[32]; };
struct q4_k { uint16_t d, dmin; uint8_t scales[12], q[128]; };
struct q6_k { uint8_t low[128], high[64]; int8_t scales[16]; uint16_t d; };

_Static_assert(sizeof(struct q4_0) == 18 && sizeof(struct q4_1) == 20 && sizeof(struct q8_0) == 34, "GGML sizes");
_Static_assert(sizeof(struct q4_k) == 144 && sizeof(struct q6_k) == 210, "GGML sizes");

static inline float bits_to_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* IEEE half to single, exact for every value; what F16C's instruction gives. */
static inline float half_to_float(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) /* infinity, or NaN made quiet */
        return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff ? 0x400000 | (rest & 0x3ff) << 13 : 0));
    if (rest < 0x400) { /* zero and subnormals: a whole number of 2^-24 */
        const float value = (float)rest * 0x1p-24f;
        return sign ? -value : value;
    }
    return bits_to_float(sign | ((rest << 13) + (112u << 23)));
}

/* Scale and least of sub-block j of 32 weights, six bits each, packed in twelve bytes for eight of them. */
static inline void q4_k_scale(const uint8_t *packed, int j, int *scale, int *least)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *least = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        *least = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
    }
}

#endif
