"""A model measured without a server: the runtime on an event loop and a thread of its own, asked without a socket.

What it costs here and what it costs over the wire differ by the server. Who asks, and when, is told by
`in_process_driver` and `mlperf`. Language models are measured through a server: their text comes over its API.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from farthing.config.server import ServerConfig
from farthing.repository import Repository
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed, Unsupported
from farthing.types.requests import InferRequest, InferResponse
from farthing.types.tensors import TensorSpec

SAMPLE: Final = "sample:"
SWITCH_S: Final = 0.0005
"""As the server sets it: a thread must not wait 5 ms for the interpreter while the loop is busy."""

Value = TypeVar("Value")
Answer = InferResponse | FarthingError
Done = Callable[[Answer], None]


def is_in_process(target: str) -> bool:
    """Whether this names a model here, and not a server: `sample:NAME`, or a path that exists."""
    return target.startswith(SAMPLE) or ("://" not in target and Path(target).exists())


class InProcess:
    """The models under `target`, loaded; blocks until they are. Raises `LoadFailed` with what is wrong with them."""

    def __init__(self, target: str) -> None:
        from farthing.engines.registry import default_filenames
        from farthing.runtime.runtime import Runtime

        self.target = target
        if target.startswith(SAMPLE):
            from farthing.repository.samples import sample_paths

            paths = sample_paths(target.removeprefix(SAMPLE))
        else:
            paths = [Path(target)]
        self._runtime = Runtime(Repository(paths, default_filenames=default_filenames()), ServerConfig())
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="in-process", daemon=True)
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        self._thread.start()
        try:
            self._call(self._runtime.start())
            self._check_loaded()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """For people."""
        return f"{self.target} in process"

    def models(self) -> list[str]:
        """The names of all that answer."""
        return sorted({line.name for line in self._runtime.index() if line.state == "READY"})

    def inputs(self, model: str) -> list[TensorSpec]:
        """What a model takes. Raises `NotFound`, or `Unsupported` for what does not answer once for each request."""
        from farthing.runtime.language_model import LanguageModel
        from farthing.runtime.served_streams import Streaming

        served = self._runtime.resolve(model)
        if isinstance(served, LanguageModel | Streaming):
            raise Unsupported(
                f"`{model}` answers in parts, and is measured through a server",
                hint=f"farthing serve {self.target}; then farthing bench http://127.0.0.1:8000 -m {model}",
            )
        return list(served.spec.inputs)

    def submit(self, request: InferRequest, done: Done) -> Callable[[], None]:
        """On `loop` only: checks and queues a request as the server would; `done` gets its answer, later, on the loop.

        Gives what withdraws it, after which `done` is not called any more.
        """
        try:
            served = self._runtime.resolve(request.model_name)
            return served.submit(request, *served.check(request), time.monotonic_ns(), done)
        except FarthingError as error:
            handle = self.loop.call_soon(partial(done, error))
            return handle.cancel

    def close(self) -> None:
        """Unloads everything and ends the thread."""
        if not self._thread.is_alive():
            return
        self._call(self._runtime.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        sys.setswitchinterval(self._switch_s)

    def _call(self, work: "Coroutine[Any, Any, Value]") -> Value:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def _check_loaded(self) -> None:
        lines = self._runtime.index()
        for line in lines:
            if line.state not in {"READY", ""}:
                raise LoadFailed(f"model `{line.name}` cannot be measured: {line.reason}")
        if not self.models():
            raise InvalidInput(f"there is no model in {self.target}", hint="name a model file, or a folder of models")


def _new_loop() -> asyncio.AbstractEventLoop:
    """The server's own kind, so that both are measured alike."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
