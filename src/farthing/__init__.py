"""Farthing serves trained models as the cheapest endpoint that meets a latency target."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from farthing.engines.python.native import Context, Request, Tensor

__all__ = ["Context", "Request", "Tensor", "__version__"]
__version__: Final = "0.1.0"


def __getattr__(name: str) -> Any:
    """What a Python model's file imports from here, fetched when it is asked for."""
    if name in {"Context", "Request", "Tensor"}:
        from farthing.engines.python import native

        return getattr(native, name)
    raise AttributeError(f"module `farthing` has no attribute `{name}`")
