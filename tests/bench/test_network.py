"""The emulated network, with real packets. Bounds are wide: other things run on this machine too."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from bench.links import LinkSpec
from bench.network import Namespaces, Network, Proxies, why_no_namespaces

# Echoes the first byte of a connection, then swallows what comes and answers with one byte at its end
SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
while True:
    peer, _ = listener.accept()
    peer.sendall(peer.recv(1))
    while peer.recv(65536):
        pass
    peer.sendall(b"!")
    peer.close()
"""
# Prints the seconds of a one-byte round trip, and of sending so many bytes until they have arrived
CLIENT = """
import socket, sys, time
host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
peer = socket.create_connection((host, port))
begun = time.monotonic()
peer.sendall(b"?")
peer.recv(1)
print(time.monotonic() - begun, flush=True)
begun = time.monotonic()
peer.sendall(bytes(size))
peer.shutdown(socket.SHUT_WR)
peer.recv(1)
print(time.monotonic() - begun, flush=True)
"""


def namespaces() -> Network:
    if reason := why_no_namespaces():
        pytest.skip(f"no network namespaces here: {reason}")
    return Namespaces()


@pytest.fixture(params=[namespaces, lambda: Proxies("a test")], ids=["namespaces", "proxies"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    with request.param() as made:
        yield made


@pytest.fixture
def port(network: Network) -> Iterator[int]:
    host = "0.0.0.0" if network.at_service() else "127.0.0.1"
    command = [*network.at_service(), sys.executable, "-c", SERVER, host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.kill()


def measured(network: Network, port: int, size: int) -> tuple[float, float]:
    host, through = network.reach(port)
    done = subprocess.run(
        [*network.at_robot(), sys.executable, "-c", CLIENT, host, str(through), str(size)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    round_trip, transfer = map(float, done.stdout.split())
    return round_trip, transfer


def test_round_trip_and_rate_are_those_of_the_link(network: Network, port: int) -> None:
    network.shape(LinkSpec("x", rtt=0.06, up_mbit=20, down_mbit=100))
    size = 2_000_000
    round_trip, transfer = measured(network, port, size)
    assert 0.055 < round_trip < 0.2
    assert 10 < size * 8 / transfer / 1e6 < 20.5


def test_a_link_without_limits_is_fast(network: Network, port: int) -> None:
    network.shape(LinkSpec("x"))
    round_trip, transfer = measured(network, port, 2_000_000)
    assert round_trip < 0.05
    assert 2 / transfer > 10  # megabytes per second


@pytest.mark.parametrize("link", [LinkSpec("limits", rtt=0.02, up_mbit=50, down_mbit=50), LinkSpec("none")])
def test_bytes_are_counted_on_the_link(network: Network, port: int, link: LinkSpec) -> None:
    network.shape(link)
    up, down = network.uplink_bytes(), network.downlink_bytes()
    measured(network, port, 1_000_000)
    assert 1_000_000 <= network.uplink_bytes() - up < 1_200_000
    assert 1 <= network.downlink_bytes() - down < 100_000


def test_silence_holds_a_round_trip_up(network: Network, port: int) -> None:
    network.shape(LinkSpec("x", rtt=0.02))
    host, through = network.reach(port)
    client = [*network.at_robot(), sys.executable, "-c", CLIENT, host, str(through), "1"]
    network.silence(1.5)
    begun = time.monotonic()
    done = subprocess.run(client, capture_output=True, text=True, check=True, timeout=30)
    assert time.monotonic() - begun > 1.4
    assert len(done.stdout.split()) == 2


def test_many_connections_share_a_proxy() -> None:
    """gRPC through a proxy opens several."""
    with Proxies("a test") as network, socket.create_server(("127.0.0.1", 0)) as listener:
        network.shape(LinkSpec("x", rtt=0.01))
        host, through = network.reach(listener.getsockname()[1])

        def serve() -> None:
            for _ in range(3):
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(peer.recv(1))

        server = threading.Thread(target=serve)
        server.start()
        for letter in (b"a", b"b", b"c"):
            with socket.create_connection((host, through), 10) as client:
                client.sendall(letter)
                assert client.recv(1) == letter
        server.join()
