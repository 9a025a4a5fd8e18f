"""A pytest plugin (`-p tests.native.sanitized`): takes the native module from FARTHING_NATIVE instead of the installed one.

`make sanitize` runs the native tests with a build that has address and undefined-behaviour sanitizers.
"""

import importlib.util
import os
import sys

import farthing

_path = os.environ["FARTHING_NATIVE"]
_spec = importlib.util.spec_from_file_location("farthing._native", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["farthing._native"] = _module
farthing._native = _module  # type: ignore[attr-defined]
_spec.loader.exec_module(_module)
