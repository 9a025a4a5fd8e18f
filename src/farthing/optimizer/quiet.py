"""ONNX Runtime's quantiser and its friends talk on stdout and on the root logger; not here."""

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is heard of what runs inside."""
    level = logging.root.level
    logging.root.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)
