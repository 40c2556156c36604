"""Joins two network namespaces by a TUN in each, in one process: delay, rate, loss and silence at the IP level.

Told what to do by lines of JSON on standard input: {"up": {...}, "down": {...}} sets fields of links.Direction,
{"silent": 5} silences both directions. Each line is answered by one with the counters.

usage: python -m bench.emulator ROBOT_NAMESPACE SERVICE_NAMESPACE DEVICE
"""

import contextlib
import fcntl
import heapq
import json
import os
import select
import struct
import sys
import time

from bench.links import Direction

NAMESPACES = "/run/netns"
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
PACKET = 65536
# Below the control loop's, above everything else: a late packet is a slower link than the table says
FIFO_PRIORITY = 1


def open_tun(namespace: str, device: str) -> int:
    """Makes a TUN device in a namespace and returns its file descriptor. It stays there when we come back."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"{NAMESPACES}/{namespace}", os.O_RDONLY)
    try:
        os.setns(there, os.CLONE_NEWNET)
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN_NO_PI))
    finally:
        os.setns(home, os.CLONE_NEWNET)
        os.close(there)
        os.close(home)
    return tun


class Emulator:
    """Moves packets between two TUN devices."""

    def __init__(self, robot: int, service: int) -> None:
        """Takes the two file descriptors; both directions let everything through at once."""
        self.up, self.down = Direction(), Direction()
        self._ways = {robot: (self.up, service), service: (self.down, robot)}
        self._due: list[tuple[float, int, int, bytes]] = []
        self._number = 0

    def run(self, commands: int) -> None:
        """Runs until commands, a file descriptor, is at its end."""
        rest = b""
        while True:
            # select and not epoll, which rounds to whole milliseconds
            timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            ready, _, _ = select.select([*self._ways, commands], [], [], timeout)
            for descriptor in ready:
                if descriptor in self._ways:
                    self._take_in(descriptor)
                    continue
                data = os.read(commands, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
            self._give_out()

    def _take_in(self, descriptor: int) -> None:
        direction, _ = self._ways[descriptor]
        for _ in range(64):
            try:
                packet = os.read(descriptor, PACKET)
            except BlockingIOError:
                return
            now = time.monotonic()
            arrival = direction.arrival(len(packet), now)
            if arrival is not None:
                self._number += 1
                heapq.heappush(self._due, (arrival, self._number, self._ways[descriptor][1], packet))

    def _give_out(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, descriptor, packet = heapq.heappop(self._due)
            with contextlib.suppress(OSError):  # its queue is full: lost, as anywhere
                os.write(descriptor, packet)

    def _obey(self, command: dict[str, object]) -> None:
        for name, direction in (("up", self.up), ("down", self.down)):
            fields = command.get(name, {})
            assert isinstance(fields, dict)
            for field, value in fields.items():
                setattr(direction, field, float(value))
            if "silent" in command:
                direction.silent_until = time.monotonic() + float(str(command["silent"]))
        counters = {
            name: {"passed": direction.passed_bytes, "dropped": direction.dropped_bytes}
            for name, direction in (("up", self.up), ("down", self.down))
        }
        sys.stdout.write(json.dumps(counters) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Runs until standard input is closed."""
    robot_namespace, service_namespace, device = sys.argv[1:]
    emulator = Emulator(open_tun(robot_namespace, device), open_tun(service_namespace, device))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    emulator.run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
