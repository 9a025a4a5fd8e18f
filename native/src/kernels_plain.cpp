#define FARTHING_ISA_NAME "plain"
#include "kernels.inc"

const farthing::Kernels* farthing::kernels_plain() { return &table; }
