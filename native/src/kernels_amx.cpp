#define FARTHING_ISA_NAME "amx"
#include "kernels.inc"

const farthing::Kernels* farthing::kernels_amx() { return &table; }
