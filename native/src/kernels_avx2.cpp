#define FARTHING_ISA_NAME "avx2"
#include "kernels.inc"

const farthing::Kernels* farthing::kernels_avx2() { return &table; }
