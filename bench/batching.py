"""How many robots one server serves: Longarm with and without batches, and LeRobot's own.

usage: python -m bench.batching [--policy act|smolvla] [--device cpu] [--robots 1 2 4 8] [--seconds 10]

A real server in a process of its own, and robots that ask again as soon as they are answered. Every row is measured in
turn on the same machine; compare rows, not machines. Prints Markdown, and writes it to bench/results/NAME.md.
"""

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.fleet import HEIGHT, WIDTH, Answer, Asker, LongarmRobot, StockRobot, idle_share
from bench.made_policy import add_policy_options, make_checkpoint
from bench.peers import Longarm, Peer, Stock
from bench.publish import publish
from bench.service import serving

WARM_UP_SECONDS = 2.0
MORE_THAN_ANY_WAIT = 60


@dataclass(frozen=True)
class Kind:
    """A server to compare, and what asks it."""

    name: str
    peer: Peer
    robot: Callable[[int, int, Path, str], Asker]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What one server did for so many robots.

    Attributes:
      robots: How many.
      rate: Chunks per second that were for the robot that got them.
      p50, p95: Their latency in milliseconds, encoding included.
      idle: Share of ticks without an action, mean over robots, 0 to 1.
      astray: Share of calls that brought nothing, or another robot's chunk.
      per_pass: Observations per forward pass; NaN if the server does not tell.
      outside: Median of the latency's milliseconds that are not encoding, waiting or the forward pass; likewise.
    """

    robots: int
    rate: float
    p50: float
    p95: float
    idle: float
    astray: float
    per_pass: float
    outside: float


def row(fleet: list[list[Answer]], begun: float, ended: float, per_pass: float) -> Row:
    """Returns the figures of the answers of a fleet between begun and ended."""
    within = [answer for answers in fleet for answer in answers if begun <= answer.answered < ended]
    own = [answer for answer in within if answer.own]
    latencies = [1000 * (answer.answered - answer.asked) for answer in own] or [float("nan")]
    return Row(
        robots=len(fleet),
        rate=len(own) / (ended - begun),
        p50=float(np.quantile(latencies, 0.5)),
        p95=float(np.quantile(latencies, 0.95)),
        idle=float(np.mean([idle_share(answers, begun, ended) for answers in fleet])),
        astray=1 - len(own) / max(1, len(within)),
        per_pass=per_pass,
        outside=1000 * float(np.median([answer.outside_seconds for answer in own] or [float("nan")])),
    )


def measure(kind: Kind, server: "Server", checkpoint: Path, device: str, robots: int, seconds: float) -> Row:
    """Lets so many robots ask for so many seconds."""
    fleet = [kind.robot(number, kind.peer.port, checkpoint, device) for number in range(robots)]
    for robot in fleet:
        robot.start()
    time.sleep(WARM_UP_SECONDS)
    begun, before = time.monotonic(), server.passes()
    time.sleep(seconds)
    ended, after = time.monotonic(), server.passes()
    for robot in fleet:
        robot.stop()
    count, total = after[0] - before[0], after[1] - before[1]
    return row([robot.answers for robot in fleet], begun, ended, total / count if count else float("nan"))


class Server:
    """A running server."""

    def __init__(self, announce: Path | None) -> None:
        self._announce = announce

    def passes(self) -> tuple[float, float]:
        """Returns the forward passes so far, and the observations in them; nothing where the server does not tell."""
        if self._announce is None:
            return 0, 0
        port = json.loads(self._announce.read_text())["metrics_port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
        name = "longarm_service_batch_size"
        return float(lines[f"{name}_count"]), float(lines[f"{name}_sum"])


@contextmanager
def running(kind: Kind, directory: Path, checkpoint: Path) -> Iterator[Server]:
    """Runs a kind's server."""
    child = serving(kind.peer, directory, checkpoint, kind.flags)
    try:
        yield Server(directory / "service.json" if isinstance(kind.peer, Longarm) else None)
    finally:
        child.stop()


def kinds(device: str, batch_sizes: list[int], window: float) -> list[Kind]:
    """Returns what to compare."""
    found = []
    for size in batch_sizes:
        flags = {
            "policy_device": device,
            "max_batch_size": size,
            "batch_window": window,
            "obs_queue_timeout": MORE_THAN_ANY_WAIT,
        }
        name = "Longarm, one by one" if size == 1 else f"Longarm, batches of up to {size}"
        found.append(Kind(name, Longarm(), LongarmRobot, tuple(f"--{key}={value}" for key, value in flags.items())))
    return [*found, Kind(Stock.name, Stock(), StockRobot)]


def table(rows: list[tuple[str, Row]]) -> list[str]:
    """Returns rows as lines of Markdown."""
    lines = [
        "| server | robots | chunks/s | latency p50 / p95, ms | idle ticks, % | in vain, % | per pass | outside, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in rows:
        latency = "" if np.isnan(one.p50) else f"{one.p50:.0f} / {one.p95:.0f}"
        told = " | " if np.isnan(one.per_pass) else f"{one.per_pass:.1f} | {one.outside:.1f}"
        shares = f"{100 * one.idle:.0f} | {100 * one.astray:.0f}"
        lines.append(f"| {name} | {one.robots} | {one.rate:.1f} | {latency} | {shares} | {told} |")
    return lines


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_policy_options(parser)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint for six joints, front and wrist, instead")
    parser.add_argument("--robots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--max_batch_size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--batch_window", type=float, default=0.003, help="in seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="per row")
    parser.add_argument("--name", default="batching", help="of the file in bench/results")
    options = parser.parse_args()
    rows: list[tuple[str, Row]] = []
    with tempfile.TemporaryDirectory(prefix="longarm-bench-") as name:
        folder = Path(name)
        checkpoint = (options.checkpoint or folder / "policy").resolve()
        if options.checkpoint is None:
            checkpoint = make_checkpoint(options, checkpoint)
        for number, kind in enumerate(kinds(options.device, options.max_batch_size, options.batch_window)):
            with running(kind, folder / str(number), checkpoint) as server:
                for robots in options.robots:
                    found = measure(kind, server, checkpoint, options.device, robots, options.seconds)
                    rows.append((kind.name, found))
                    sys.stderr.write(table(rows)[-1] + "\n")
    where = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "one thread of the CPU"
    text = "\n".join(
        [
            "# Several robots on one server",
            "",
            "Made by `python -m bench.batching`. Do not edit.",
            "",
            f"Policy {checkpoint.name if options.checkpoint else options.policy} on {where}. Robots with two",
            f"{WIDTH}x{HEIGHT} cameras ask again as soon as they are answered, on the server's machine, and play",
            "chunks of 50 at 30 ticks a second.",
            "",
            *table(rows),
            "",
            "- **idle ticks**: for which a robot had no action of its own.",
            "- **in vain**: calls that brought nothing, or a chunk for what another robot saw. LeRobot's server",
            "  is made for one robot: the next observation, from whomever, answers the call that waits longest.",
            "- **per pass**: observations in one forward pass.",
            "- **outside**: median of a call without encoding, waiting for a turn and the forward pass.",
            "",
        ]
    )
    publish(options.name, text)


if __name__ == "__main__":
    main()
