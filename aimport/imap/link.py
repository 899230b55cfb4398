"""What limits the sending on a TCP connection: the link, the server or we.

Linux counts it for each socket (struct tcp_info since 4.9): while octets are under way or wait
to be sent, the time is "busy"; the parts of it in which the receiver's window was full, or our
own send buffer too small, are counted apart. What is left, the network took.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final, Protocol

SLOW_OCTETS_PER_S: Final = 10_000_000
"""A link below this is worth compressing for. DEFLATE at level 1 takes 48 MB/s of attachments in
base64 (135 MB/s of text) on one processor and makes 0.8 (0.4) of them; a fifth of that is the margin for
the processors that other connections need."""
ENOUGH_US: Final = 1_000_000
"""Time busy sending that says something: by then slow start is over on a path of 100 ms."""
NETWORK_SHARE: Final = 0.75
"""Part of the busy time that must be the network's. Seen: 0.99 and more on shaped links of 4 to 160
Mbit/s, at most 0.39 with readers slower than the link."""

_TCP_INFO: Final = struct.Struct("=7xB112xQ32xQQQQ")
"""Flags, bytes_acked, delivery_rate, busy_time, rwnd_limited, sndbuf_limited; times in us."""
_APP_LIMITED: Final = 0x01 if sys.byteorder == "little" else 0x80  # the first bit field of that octet


class Socket(Protocol):
    """A socket, or what asyncio and uvloop give as the extra info `socket` of a transport."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def link_is_slow(sock: Socket) -> bool | None:
    """Whether the network between us and the server, and nothing else, holds up what we send.

    False: it carries `SLOW_OCTETS_PER_S`, or the server reads more slowly than it, or our own send
    buffer is the limit. None: not to be told, for too little was sent, or always too little at a
    time to fill the link, or the system does not count. Looks back over the whole life of
    the connection, so ask after a few seconds of bulk; costs one system call.
    """
    counted = _counted(sock)
    if counted is None:
        return None
    flags, acked, rate, busy_us, receiver_us, buffer_us = counted
    if busy_us < ENOUGH_US:
        return None
    if busy_us - receiver_us - buffer_us < NETWORK_SHARE * busy_us:
        return False
    # Both: the rate is that of the last flight alone, the average has all short flights and waits in it.
    if rate >= SLOW_OCTETS_PER_S or acked * 1_000_000 >= SLOW_OCTETS_PER_S * busy_us:
        return False
    return None if flags & _APP_LIMITED else True


def _counted(sock: Socket) -> tuple[int, int, int, int, int, int] | None:
    if sys.platform != "linux":  # other systems have a struct of the same name and another form
        return None
    try:
        octets = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:  # no TCP, or closed
        return None
    if len(octets) < _TCP_INFO.size:  # before Linux 4.9
        return None
    flags, acked, rate, busy_us, receiver_us, buffer_us = _TCP_INFO.unpack(octets)
    return flags, acked, rate, busy_us, receiver_us, buffer_us
