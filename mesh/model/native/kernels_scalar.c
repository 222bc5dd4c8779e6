/* Any machine with a C compiler; the reference that the others must equal bit for bit. */
#define KERNELS native_scalar
#include "kernels.h"
