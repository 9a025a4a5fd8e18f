"""Frames without work: how many a client may send before it is taken for a flood.

PING and SETTINGS floods (CVE-2019-9512, -9515), empty frames (-9518), rapid resets (CVE-2023-44487), and making us
reset (CVE-2025-8671) have one thing in common: frames that cost us something and the client nothing. They draw on one
allowance, which time refills slowly and answered requests quickly. Honest clients cannot exhaust it.
"""

from farthing.protocols.http2.frames import BrokenConnection, ErrorCode
from farthing.protocols.http2.limits import ALLOWANCE_FRAMES, ALLOWANCE_FRAMES_PER_S, EARNED_FRAMES_MAX


class Allowance:
    """What is left to one connection."""

    __slots__ = ("_frames", "_since_s")

    def __init__(self, now_s: float) -> None:
        self._frames = float(ALLOWANCE_FRAMES)
        self._since_s = now_s

    def spend(self, now_s: float, what: str) -> None:
        """One frame without work came. Raises `BrokenConnection` when there have been too many."""
        self._frames -= 1
        if self._frames >= 0:
            return
        refilled = (now_s - self._since_s) * ALLOWANCE_FRAMES_PER_S
        self._frames = min(self._frames + refilled, ALLOWANCE_FRAMES)
        self._since_s = now_s
        if self._frames < 0:
            raise BrokenConnection(ErrorCode.ENHANCE_YOUR_CALM, f"too many frames without work, the last one {what}")

    def earn(self, frames: float) -> None:
        """The client let itself be served."""
        self._frames = min(self._frames + frames, EARNED_FRAMES_MAX)
