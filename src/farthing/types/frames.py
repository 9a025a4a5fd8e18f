"""Frames of a real-time stream: what their sender asks for, and what may become of them.

A frame is an inference request that is worth something only for a while. Which frame runs belongs to `batching.frames`,
order and accounts of one stream to `runtime.frame_stream`, bytes to `protocols`.
"""

from enum import StrEnum
from typing import Final

import msgspec

from farthing.types.errors import FarthingError
from farthing.types.requests import InferResponse

WAITING_MAX_DEFAULT: Final = 32
WAITING_MAX: Final = 256
"""Frames of one stream that may wait where all are kept: by default one second of a camera's, at most ten."""

DEADLINE_MS_MAX: Final = 3_600_000
"""An hour: who waits longer has no deadline."""


class FramePolicy(StrEnum):
    """Which frames of a stream are worth running when there is not time for all."""

    LATEST = "latest"
    """A newer frame takes the place of one that waits."""
    ALL = "all"
    """Every frame, in turn, as long as it can be on time and there is room."""


class DropReason(StrEnum):
    """Why a frame was not run."""

    SUPERSEDED = "superseded"
    """A newer one came before its turn."""
    LATE = "late"
    """It could not have been answered by its deadline any more."""
    OVERLOAD = "overload"
    """There was no room: in its stream, in the model's queue, or in its tenant's share."""
    GONE = "gone"
    """Its client left."""


class FrameOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream's frames are to be treated."""

    policy: FramePolicy = FramePolicy.LATEST
    deadline_ns: int = 0
    """From a frame's arrival to its answer; 0 for none."""
    waiting_max: int = WAITING_MAX_DEFAULT
    """Frames that may wait where all are kept; the next one is dropped."""


FrameOutcome = InferResponse | FarthingError | DropReason
"""What became of a frame."""
