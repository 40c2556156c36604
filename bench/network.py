"""Two places, robot and service, and a link between them: network namespaces, or a TCP proxy where there are none."""

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.links import MEGABIT, LinkSpec
from bench.proxy import Proxy

TUN, VETH = "lt0", "lv0"
# A network of our own in each of two namespaces of our own
ADDRESSES = {TUN: ("10.99.0.1", "10.99.0.2"), VETH: ("10.98.0.1", "10.98.0.2")}
# What a machine comes with, whatever the one we run on was tuned to
CONGESTION_CONTROL = "cubic"
SLOW_START_AFTER_IDLE = "net.ipv4.tcp_slow_start_after_idle"


class NoNamespacesError(Exception):
    """Network namespaces cannot be made here; the message says why."""


class Network(ABC):
    """Where robot and service run, and what is between them. Use as a context manager.

    Attributes:
      kind: How the link is made, for the table.
    """

    kind: str

    @abstractmethod
    def at_robot(self) -> list[str]:
        """Returns what to put before a command so that it runs at the robot."""

    @abstractmethod
    def at_service(self) -> list[str]:
        """Returns what to put before a command so that it runs at the service."""

    @abstractmethod
    def service_addresses(self) -> list[str]:
        """Returns the addresses of the service's place besides its loopback."""

    @abstractmethod
    def shape(self, link: LinkSpec) -> None:
        """Makes the link behave like link from now on."""

    @abstractmethod
    def reach(self, port: int) -> tuple[str, int]:
        """Returns host and port by which the robot reaches a port of the service's place over the present link."""

    @abstractmethod
    def silence(self, seconds: float) -> None:
        """Loses everything on the link for a while. What is open stays open."""

    @abstractmethod
    def uplink_bytes(self) -> int:
        """Returns the bytes that left the robot's place so far, headers and repeats included."""

    @abstractmethod
    def downlink_bytes(self) -> int:
        """Returns the bytes that reached the robot's place so far."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_network(*, keep_window: bool = False) -> Network:
    """Returns a network of namespaces if this machine allows it, else one of TCP proxies.

    Args:
      keep_window: Whether TCP keeps its congestion window through pauses, which is not Linux's default.
    """
    reason = why_no_namespaces()
    return Namespaces(keep_window=keep_window) if not reason else Proxies(reason)


def why_no_namespaces() -> str:
    """Returns why network namespaces cannot be used here, empty if they can."""
    if not shutil.which("ip"):
        return "there is no ip command (apt-get install iproute2)"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    name = f"longarm-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"ip netns add: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


class Namespaces(Network):
    """Two namespaces: joined by a veth pair for a link without limits, by TUN and an emulator for any other."""

    def __init__(self, *, keep_window: bool = False) -> None:
        """Makes nothing yet. See make_network for keep_window."""
        idle = "off" if keep_window else "on"
        self.kind = f"network namespaces, IP packets, {CONGESTION_CONTROL}, slow start after idle {idle}"
        self._keep_window = keep_window
        self.robot, self.service = (f"longarm-{place}-{os.getpid()}" for place in ("robot", "service"))
        self._device = VETH
        self._stack = ExitStack()
        self._emulator: subprocess.Popen[str] | None = None

    def at_robot(self) -> list[str]:
        """See Network."""
        return ["ip", "netns", "exec", self.robot]

    def at_service(self) -> list[str]:
        """See Network."""
        return ["ip", "netns", "exec", self.service]

    def service_addresses(self) -> list[str]:
        """See Network."""
        return [service for _, service in ADDRESSES.values()]

    def shape(self, link: LinkSpec) -> None:
        """See Network."""
        self._device = TUN if link.emulated else VETH
        common = {"delay": link.rtt / 2, "loss": link.loss}
        self._tell(
            {
                "up": {**common, "bytes_per_second": link.up_mbit * MEGABIT},
                "down": {**common, "bytes_per_second": link.down_mbit * MEGABIT},
            }
        )

    def reach(self, port: int) -> tuple[str, int]:
        """See Network."""
        return ADDRESSES[self._device][1], port

    def silence(self, seconds: float) -> None:
        """See Network. A link without limits cannot be silenced."""
        if self._device != TUN:
            raise ValueError("Expected an emulated link to silence")
        self._tell({"silent": seconds})

    def uplink_bytes(self) -> int:
        """See Network."""
        return self._counter("tx_bytes")

    def downlink_bytes(self) -> int:
        """See Network."""
        return self._counter("rx_bytes")

    def __enter__(self) -> Self:
        """Makes it.

        Raises:
          NoNamespacesError: It cannot be made here.
        """
        try:
            self._make()
        except (subprocess.CalledProcessError, OSError) as error:
            self._stack.close()
            raise NoNamespacesError(str(error)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _make(self) -> None:
        places = (self.robot, self.service)
        for place in places:
            _ip("netns", "add", place)
            self._stack.callback(_ip, "netns", "del", place)
        _ip("link", "add", VETH, "netns", self.robot, "type", "veth", "peer", "name", VETH, "netns", self.service)
        self._emulator = subprocess.Popen(
            [sys.executable, "-m", "bench.emulator", *places, TUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(_end, self._emulator)
        self._answer()
        for index, place in enumerate(places):
            _ip("-n", place, "link", "set", "lo", "up")
            for device, addresses in ADDRESSES.items():
                _ip("-n", place, "addr", "add", f"{addresses[index]}/24", "dev", device)
                _ip("-n", place, "link", "set", device, "up")
                # By route: not every machine lets a namespace choose for itself
                network = addresses[0].rpartition(".")[0] + ".0/24"
                _ip(*f"-n {place} route replace {network} dev {device} congctl {CONGESTION_CONTROL}".split())
            _ip("netns", "exec", place, "sysctl", "-qw", f"{SLOW_START_AFTER_IDLE}={int(not self._keep_window)}")

    def _tell(self, command: dict[str, Any]) -> None:
        assert self._emulator is not None, "enter first"
        assert self._emulator.stdin is not None
        self._emulator.stdin.write(json.dumps(command) + "\n")
        self._emulator.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._emulator is not None
        assert self._emulator.stdout is not None
        if not self._emulator.stdout.readline():
            raise OSError(f"the link's emulator ended with {self._emulator.wait()}")

    def _counter(self, name: str) -> int:
        file = f"/sys/class/net/{self._device}/statistics/{name}"
        return int(_ip("netns", "exec", self.robot, "cat", file))


class Proxies(Network):
    """Everything on one loopback, through proxies that delay bytes of TCP: no packets, no slow start, no loss."""

    def __init__(self, reason: str) -> None:
        """Takes the reason why there is nothing better."""
        self.kind = f"TCP proxy ({reason})"
        self._link = LinkSpec("none")
        self._proxies: list[Proxy] = []

    def at_robot(self) -> list[str]:
        """See Network."""
        return []

    def at_service(self) -> list[str]:
        """See Network."""
        return []

    def service_addresses(self) -> list[str]:
        """See Network."""
        return []

    def shape(self, link: LinkSpec) -> None:
        """See Network."""
        self._link = link

    def reach(self, port: int) -> tuple[str, int]:
        """See Network. Each call opens one more proxy."""
        self._proxies.append(Proxy(port, self._link))
        return "127.0.0.1", self._proxies[-1].port

    def silence(self, seconds: float) -> None:
        """See Network."""
        for proxy in self._proxies:
            proxy.silence(seconds)

    def uplink_bytes(self) -> int:
        """See Network."""
        return sum(proxy.up_bytes for proxy in self._proxies)

    def downlink_bytes(self) -> int:
        """See Network."""
        return sum(proxy.down_bytes for proxy in self._proxies)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self._proxies:
            proxy.close()


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _end(process: "subprocess.Popen[str]") -> None:
    with process:  # closes its pipes, upon which it ends
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
