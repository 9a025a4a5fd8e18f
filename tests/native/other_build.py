"""A pytest plugin (`-p tests.native.other_build`): takes the native modules from FARTHING_NATIVE and FARTHING_BENCH instead
of the installed ones.

`make sanitize` runs the native tests with a build that has address and undefined-behaviour sanitizers, `make emulate` with
one whose kernels for AVX-512 and AMX any processor with AVX2 can run.
"""

import importlib.util
import os
import sys

import farthing

for _name, _variable in (("_native", "FARTHING_NATIVE"), ("_bench", "FARTHING_BENCH")):
    _spec = importlib.util.spec_from_file_location(f"farthing.{_name}", os.environ[_variable])
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[f"farthing.{_name}"] = _module
    setattr(farthing, _name, _module)
    _spec.loader.exec_module(_module)
