#define TE_ISA baseline
#define TE_TABLE kBaselineKernels
#include "kernels/isa.inc"
