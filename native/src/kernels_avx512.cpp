#define FARTHING_ISA_NAME "avx512"
#include "kernels.inc"

const farthing::Kernels* farthing::kernels_avx512() { return &table; }
