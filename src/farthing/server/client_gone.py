"""Has a client gone, or does it only listen? And does it read what it is sent?

TCP shows no difference between a client that closed its sending side and one that is no more, until something is sent
to it. What to send, and what becomes of the connection, belongs to `server.http1`.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from farthing.config.server import HttpLimits

STATE_CLOSED: Final = 7
"""`TCP_CLOSE` in the first byte of Linux's tcp_info: the peer answered with a reset."""
GONE_CHECKS_S: Final = (0.005, 0.05, 0.25, 1.0)
"""When to look whether a client that closed its sending side has gone: a reset takes one round trip."""


def abort_if_reset(transport: asyncio.Transport, is_awaited: Callable[[], bool], attempt: int = 0) -> None:
    """Looks a few times, as long as something `is_awaited` there, whether the peer has answered with a reset."""
    if not is_awaited():
        return
    if attempt and _is_reset(transport):
        transport.abort()
    elif attempt < len(GONE_CHECKS_S):
        loop = asyncio.get_running_loop()
        loop.call_later(GONE_CHECKS_S[attempt], abort_if_reset, transport, is_awaited, attempt + 1)


def _is_reset(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == STATE_CLOSED)
    except OSError:
        return True


class ReadingPace:
    """Whether a client reads what was written for it, at a pace one can bear."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._deadline_s = 0.0
        """When it must have read more; 0 while it keeps up."""
        self._unsent_bytes = 0

    def expect(self, transport: asyncio.Transport, now_s: float) -> None:
        """From now on it has to read."""
        self._unsent_bytes = transport.get_write_buffer_size()
        self._deadline_s = now_s + self._limits.write_timeout_s

    def kept_up(self) -> None:
        """It has read nearly all there was."""
        self._deadline_s = 0.0

    def is_too_slow(self, transport: asyncio.Transport | None, now_s: float) -> bool:
        """Whether its time is over. If it has read on at a bearable pace since the last look it has as long again."""
        if not self._deadline_s or now_s < self._deadline_s or transport is None:
            return False
        before, limits = self._unsent_bytes, self._limits
        self.expect(transport, now_s)
        return before - self._unsent_bytes < limits.body_bytes_per_s_min * limits.write_timeout_s
