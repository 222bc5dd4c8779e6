/* x86-64 with AVX-512 VNNI besides (Ice Lake 2019, Zen 4 2022 and later): the AVX2 lanes, cheaper. */
#include "native.h"

#if defined(__x86_64__)
#define LANES_AVX2
#define LANES_VNNI
#define KERNELS native_avx512
#include "kernels.h"
#endif
