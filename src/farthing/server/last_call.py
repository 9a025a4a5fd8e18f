"""No new connections, and none lost: the end of a listening socket.

Closing a listening socket resets the connections that the system has completed and we have not yet accepted; their
clients may have sent a request already. On Linux a filter that drops whatever still knocks comes first: those who
are inside are accepted and answered, and those outside try again a second later and find nobody.
"""

import ctypes
import socket
import struct
import sys
from typing import Final

SO_ATTACH_FILTER: Final = 26
"""From asm-generic/socket.h; Python has no name for it."""
DROP_ALL: Final = struct.pack("HBBI", 0x06, 0, 0, 0)
"""One instruction of classic BPF: return 0, keep nothing of the packet."""


def refuse_newcomers(sock: socket.socket) -> None:
    """From now on no connection is added to those waiting to be accepted. Elsewhere than on Linux: does nothing."""
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(DROP_ALL, len(DROP_ALL))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
    except OSError:
        return  # a sandbox without it: then the moment of closing may cost a client a reset
