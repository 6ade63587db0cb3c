#define TE_ISA avx512
#define TE_TABLE kAvx512Kernels
#include "kernels/isa.inc"
