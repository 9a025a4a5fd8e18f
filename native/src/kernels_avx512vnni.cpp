#define FARTHING_ISA_NAME "avx512vnni"
#include "kernels.inc"

const farthing::Kernels* farthing::kernels_avx512vnni() { return &table; }
