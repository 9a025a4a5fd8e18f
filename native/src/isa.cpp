// Which kernels this processor can run, and which FARTHING_ISA asks for.
#include <cstdlib>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace farthing {
namespace {

#if defined(__x86_64__) && !defined(FARTHING_EMULATE)
// AMX's registers are so large that Linux wants to be asked before a process uses them.
bool may_use_amx() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch/x86/include/uapi/asm/prctl.h
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

const Kernels* choose(const std::string& asked) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#if defined(FARTHING_EMULATE)
  const bool avx512 = avx2, vnni = avx2, bf16 = avx2, amx = avx2;
  const auto may_use_amx = [] { return true; };
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  const bool amx = bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8");
#endif
  const bool is_auto = asked.empty() || asked == "auto";
  if (amx && (is_auto || asked == "amx") && may_use_amx()) return kernels_amx();
  if (bf16 && (is_auto || asked == "avx512vnni")) return kernels_avx512vnni_bf16();
  if (vnni && (is_auto || asked == "avx512vnni" || asked == "avx512vnni-nobf16")) return kernels_avx512vnni();
  if (avx512 && (is_auto || asked == "avx512")) return kernels_avx512();
  if (avx2 && (is_auto || asked == "avx2")) return kernels_avx2();
#else
  const bool is_auto = asked.empty() || asked == "auto";
#endif
  if (is_auto || asked == "plain") return kernels_plain();
  for (const char* known : {"amx", "avx512vnni", "avx512vnni-nobf16", "avx512", "avx2"})
    if (asked == known) throw std::runtime_error("FARTHING_ISA=" + asked + ": this processor does not have it");
  throw std::runtime_error("FARTHING_ISA=" + asked + " is unknown; known: auto, amx, avx512vnni, avx512vnni-nobf16, avx512, avx2, plain");
}

}  // namespace

const Kernels& kernels() {
  const char* asked = std::getenv("FARTHING_ISA");
  return *choose(asked ? asked : "");
}

}  // namespace farthing
