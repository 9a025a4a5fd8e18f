"""A subrequest as a model asks it, and what came of it. How it travels is up to `subrequest_client`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from farthing.types.requests import Parameter
from farthing.types.tensors import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A subrequest as a model asks it."""

    model: str
    version: str = ""
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    id: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    priority: int = 0
    timeout_us: int = 0
    member: int = -1
    is_stream: bool = False
    """It may be answered any number of times."""
    can_block: bool = True
    """Whoever draws the answers may hold up the thread."""
    stream: int = 0
    """The number of the request that it is for, where these have numbers; 0: of all that are answered here."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it. The outputs are the model's own, to keep and to change."""

    model: str
    version: str
    id: str
    outputs: dict[str, Tensor]
    parameters: dict[str, Parameter]
