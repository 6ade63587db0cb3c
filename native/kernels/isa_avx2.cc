#define TE_ISA avx2
#define TE_TABLE kAvx2Kernels
#include "kernels/isa.inc"
