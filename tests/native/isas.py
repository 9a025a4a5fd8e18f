"""The instruction sets this processor can be asked for."""

import os

import pytest

_native = pytest.importorskip("farthing._native", reason="the native core is not built")

KNOWN = ("amx", "avx512vnni", "avx512vnni-nobf16", "avx512", "avx2", "plain")


def _is_here(isa: str) -> bool:
    before = os.environ.get("FARTHING_ISA")
    os.environ["FARTHING_ISA"] = isa
    try:
        _native.isa()
    except RuntimeError:
        return False
    finally:
        if before is None:
            del os.environ["FARTHING_ISA"]
        else:
            os.environ["FARTHING_ISA"] = before
    return True


HERE = tuple(isa for isa in KNOWN if _is_here(isa))
MISSING = tuple(isa for isa in KNOWN if isa not in HERE)
