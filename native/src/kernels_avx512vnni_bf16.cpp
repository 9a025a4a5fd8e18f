#define FARTHING_ISA_NAME "avx512vnni+bf16"
#include "kernels.inc"

const farthing::Kernels* farthing::kernels_avx512vnni_bf16() { return &table; }
