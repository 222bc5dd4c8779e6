/* x86-64 with AVX2, FMA and F16C (Haswell 2013, Zen 2017 and later); called only where the processor has them. */
#include "native.h"

#if defined(__x86_64__)
#define LANES_AVX2
#define KERNELS native_avx2
#include "kernels.h"
#endif
