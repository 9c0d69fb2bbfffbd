"""A slow and lossy stretch of cable, where the kernel has no netem: frames are passed on by hand, late or never.

    python relay.py plain eth0                        # have the kernel finish packets before they leave this interface
    python relay.py between near far 0.02 0.01        # 20 ms each way, one frame in a hundred lost, until it is killed

Frames are read and sent raw, so interfaces that lead here must send them whole: with checksums, and not larger than a
frame may be, which virtual cables otherwise leave to hardware that is not there.
"""

from __future__ import annotations

import array
import fcntl
import random
import selectors
import socket
import struct
import sys
import time
from collections import deque

EVERY_FRAME = 0x0003  # ETH_P_ALL
ETHTOOL = 0x8946  # SIOCETHTOOL
OFFLOADS = (0x17, 0x1F, 0x24, 0x2C)  # ETHTOOL_STXCSUM, _STSO, _SGSO, _SGRO
LARGEST = 65536


def plain(interface: str) -> None:
    """Turn off what the kernel leaves to hardware."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in OFFLOADS:
            value = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), value.buffer_info()[0])
            fcntl.ioctl(control, ETHTOOL, request)


def between(near: str, far: str, delay_s: float, loss: float) -> None:
    """Pass frames on in both directions, in order."""
    chance = random.Random(0)
    ends = [_open(near), _open(far)]
    late: deque[tuple[float, socket.socket, bytes]] = deque()
    with selectors.DefaultSelector() as selector:
        for end, other in (ends, reversed(ends)):
            selector.register(end, selectors.EVENT_READ, other)
        while True:
            pause = max(0.0, late[0][0] - time.monotonic()) if late else None
            for key, _ in selector.select(pause):
                try:
                    frame, source = key.fileobj.recvfrom(LARGEST)
                except OSError:  # the cable is down
                    time.sleep(0.05)
                    continue
                if source[2] != socket.PACKET_OUTGOING and chance.random() >= loss:
                    late.append((time.monotonic() + delay_s, key.data, frame))
            while late and late[0][0] <= time.monotonic():
                _, end, frame = late.popleft()
                try:
                    end.send(frame)
                except OSError:  # the cable is down: lost as well
                    continue


def _open(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_FRAME))
    end.bind((interface, EVERY_FRAME))
    return end


if __name__ == "__main__":
    if sys.argv[1] == "plain":
        plain(sys.argv[2])
    else:
        between(sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
