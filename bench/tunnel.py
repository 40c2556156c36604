"""What the SSH tunnel costs: direct against both backends, over the loopback and a private sshd. Prints Markdown.

usage: python bench/tunnel.py [--rounds 100] [--seconds 10]

Needs openssh-server. Every row is measured in turn on the same machine; compare rows, not machines.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from longarm_edge.tunnel import Backend, Tunnel
from longarm_edge.tunnel.local_sshd import LocalSshd, descendants

SIZES = {"1 kB": 1_000, "60 kB": 60_000, "200 kB": 200_000, "1.8 MB": 1_800_000}
REPLY = bytes(6_000)
WARM_UP = 20
FPS = 30
LATENESS = "30 Hz lateness p99 / max, ms"
LIMIT = [("grpc.max_receive_message_length", 4_000_000), ("grpc.max_send_message_length", 4_000_000)]


@dataclass
class Row:
    """One way to the service.

    Attributes:
      name: Which.
      latency_ms: Median round trip by name of size, milliseconds.
      megabytes_per_second: Of 1.8 MB requests, one at a time.
      cpu_ms: Processor time of the tunnel and of sshd for one request of 200 kB, milliseconds.
      lateness_ms: 99th percentile and maximum of a 30 Hz loop with 200 kB a tick, milliseconds.
    """

    name: str
    latency_ms: dict[str, float]
    megabytes_per_second: float
    cpu_ms: tuple[float, float]
    lateness_ms: tuple[float, float]


def serve(to_parent: Connection) -> None:
    """Runs the service in a process of its own and says its port."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=LIMIT)
    checks = health.HealthServicer()
    checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, context: REPLY)  # noqa: ARG005
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    to_parent.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


@contextmanager
def service() -> Iterator[int]:
    """Gives the port of a running service."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def cpu_seconds(process_ids: list[int]) -> float:
    """Returns the processor time of processes so far."""
    ticks = 0
    for process_id in process_ids:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(name: str, address: str, ours: list[int], theirs: list[int], rounds: int, seconds: float) -> Row:
    """Measures one way.

    Args:
      name: Its name.
      address: host:port.
      ours: Processes of the tunnel.
      theirs: Processes of sshd.
      rounds: Round trips per size.
      seconds: Length of the 30 Hz run.
    """
    with grpc.insecure_channel(address, options=LIMIT) as channel:
        echo: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bench.Echo/Echo")

        def round_trips(size: int, count: int) -> list[float]:
            request, taken = bytes(size), []
            for _ in range(count):
                started = time.perf_counter()
                echo(request, timeout=10, wait_for_ready=True)
                taken.append(time.perf_counter() - started)
            return taken

        latency = {}
        for label, size in SIZES.items():
            round_trips(size, WARM_UP)
            latency[label] = statistics.median(round_trips(size, rounds)) * 1000
        started, count = time.perf_counter(), max(20, rounds // 2)
        round_trips(SIZES["1.8 MB"], count)
        throughput = count * SIZES["1.8 MB"] / 1e6 / (time.perf_counter() - started)
        before = cpu_seconds(ours), cpu_seconds(theirs)
        round_trips(SIZES["200 kB"], 3 * rounds)
        factor = 1000 / (3 * rounds)
        used = (cpu_seconds(ours) - before[0]) * factor, (cpu_seconds(theirs) - before[1]) * factor
        late = sorted(lateness(lambda: echo(bytes(SIZES["200 kB"]), timeout=10), seconds))
    return Row(name, latency, throughput, used, (late[int(len(late) * 0.99)] * 1000, late[-1] * 1000))


def lateness(send: Callable[[], object], seconds: float) -> list[float]:
    """Returns how late each tick of a 30 Hz loop was while another thread sends once per tick, seconds."""
    due, done = threading.Semaphore(0), threading.Event()

    def work() -> None:
        while due.acquire() and not done.is_set():
            send()

    worker = threading.Thread(target=work)
    worker.start()
    late, begun = [], time.monotonic() + 0.1
    for tick in range(int(seconds * FPS)):
        instant = begun + tick / FPS
        time.sleep(max(0.0, instant - time.monotonic()))
        late.append(time.monotonic() - instant)
        due.release()
    done.set()
    due.release()
    worker.join()
    return late


def table(rows: list[Row]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        f"| | {' | '.join(f'{label}, ms' for label in SIZES)} | MB/s | CPU ms per 200 kB, tunnel + sshd | {LATENESS} |",
        "|" + " --- |" * (len(SIZES) + 4),
    ]
    for row in rows:
        latencies = " | ".join(f"{row.latency_ms[label]:.1f}" for label in SIZES)
        lines.append(
            f"| {row.name} | {latencies} | {row.megabytes_per_second:.0f} | {row.cpu_ms[0]:.2f} + {row.cpu_ms[1]:.2f} "
            f"| {row.lateness_ms[0]:.2f} / {row.lateness_ms[1]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="round trips per size")
    parser.add_argument("--seconds", type=float, default=10, help="length of each 30 Hz run")
    options = parser.parse_args()
    rows = []
    with (
        service() as port,
        tempfile.TemporaryDirectory() as directory,
        LocalSshd(Path(directory) / "sshd") as sshd,
    ):
        rows.append(measure("direct", f"127.0.0.1:{port}", [], [], options.rounds, options.seconds))
        for backend in Backend:
            others = {*descendants(os.getpid())}
            with Tunnel(sshd.settings(service_port=port, backend=backend)) as tunnel:
                tunnel.open(20)
                theirs = sshd.process_ids()
                ours = [pid for pid in descendants(os.getpid()) if pid not in others and pid not in theirs]
                rows.append(measure(backend, tunnel.address, ours, theirs, options.rounds, options.seconds))
    print(table(rows))


if __name__ == "__main__":
    main()
