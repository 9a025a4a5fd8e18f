"""Farthing serves trained models as the cheapest endpoint that meets a latency target."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from farthing.config.pipeline_builder import Pipeline, each
    from farthing.engines.python.native import Context, Request, StreamRequest, Tensor
    from farthing.optimizer import Plan, Target, Wanted, optimize, optimize_jointly

__all__ = [
    "Context",
    "Pipeline",
    "Plan",
    "Request",
    "StreamRequest",
    "Target",
    "Tensor",
    "Wanted",
    "__version__",
    "each",
    "optimize",
    "optimize_jointly",
]
__version__: Final = "0.1.0"


def __getattr__(name: str) -> Any:
    """What Python models, pipelines and programs import from here, fetched when it is asked for."""
    if name in {"Context", "Request", "StreamRequest", "Tensor"}:
        from farthing.engines.python import native

        return getattr(native, name)
    if name in {"Pipeline", "each"}:
        from farthing.config import pipeline_builder

        return getattr(pipeline_builder, name)
    if name in {"Plan", "Target", "Wanted", "optimize", "optimize_jointly"}:
        from farthing import optimizer

        return getattr(optimizer, name)
    raise AttributeError(f"module `farthing` has no attribute `{name}`")
