"""How many robots one service serves, with and without batches. Prints Markdown.

usage: python -m bench.batching [--policy act|smolvla] [--device cpu] [--robots 1 2 4 8] [--seconds 10]

A real service in a process of its own, and robots that ask again as soon as they are answered, each over a connection
of its own. Every row is measured in turn on the same machine; compare rows, not machines.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longarm_edge.policy_client import PolicyChoice, PolicyClient
from longarm_edge.robot import RobotReading
from longarm_wire.images import Codec
from longarm_wire.specs import CameraSpec, RobotSpec

START_SECONDS = 600.0
WARM_UP_SECONDS = 2.0
NAMES = tuple(f"joint_{i}.pos" for i in range(6))
SPEC = RobotSpec("bench_arm", NAMES, NAMES, (CameraSpec("front", 480, 640), CameraSpec("wrist", 480, 640)), 30.0)


@dataclass(frozen=True)
class Row:
    """What one configuration did.

    Attributes:
      rate: Chunks per second.
      p50, p95: Latency in milliseconds, encoding included.
      batch_size: Observations per forward pass.
      outside_ms: Of a latency's milliseconds, the median of those that are not encoding, waiting or the forward pass.
    """

    rate: float
    p50: float
    p95: float
    batch_size: float
    outside_ms: float


@contextmanager
def service(folder: Path, device: str, max_batch_size: int, batch_window: float) -> Iterator[tuple[str, str]]:
    """Runs a service and yields the addresses of its calls and of its metrics."""
    announce = folder / f"ports-{max_batch_size}.json"
    flags = {
        "port": 0,
        "metrics_port": 0,
        "announce": announce,
        "policy_device": device,
        "max_batch_size": max_batch_size,
        "batch_window": batch_window,
        "obs_queue_timeout": 60,
        "log_level": "warning",
    }
    command = [sys.executable, "-m", "longarm_service", "run", *(f"--{k}={v}" for k, v in flags.items())]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        give_up_at = time.monotonic() + START_SECONDS
        while not announce.exists():
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError("The service did not start")
            time.sleep(0.1)
        ports = json.loads(announce.read_text())
        yield f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['metrics_port']}/metrics"
    finally:
        process.terminate()
        process.wait(60)


class Robot(threading.Thread):
    """Asks for a chunk as soon as the last one is there, and keeps the latencies of those within the measured time."""

    def __init__(self, address: str, checkpoint: str, number: int) -> None:
        super().__init__(daemon=True)
        self.latencies: list[float] = []
        self.outside: list[float] = []
        self.measuring = threading.Event()
        self.stopping = threading.Event()
        self._client = PolicyClient(address, Codec.JPEG, 90)
        self._session = self._client.open_session(
            PolicyChoice(checkpoint, task="pick the cube"), SPEC, timeout=START_SECONDS
        )
        ramp = np.linspace(0, 255, 640, dtype=np.uint8)
        frame = np.dstack([np.tile(np.roll(ramp, 40 * number + shift), (480, 1)) for shift in (0, 100, 200)])
        self._reading = RobotReading(np.full(6, number, np.float32), {"front": frame, "wrist": frame[::-1].copy()})

    def run(self) -> None:
        """Asks until stopped."""
        while not self.stopping.is_set():
            begun = time.perf_counter()
            reply, encode_seconds, _ = self._client.predict(self._session, self._reading, episode=0, tick=0, timeout=60)
            if self.measuring.is_set():
                self.latencies.append(time.perf_counter() - begun)
                waited = reply.server_seconds["queue"] + reply.server_seconds["predict"]
                self.outside.append(self.latencies[-1] - encode_seconds - waited)
        self._client.close_session(self._session)
        self._client.close()


def measure(address: str, metrics: str, checkpoint: str, robots: int, seconds: float) -> Row:
    """Lets so many robots ask for so many seconds."""
    threads = [Robot(address, checkpoint, number) for number in range(robots)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP_SECONDS)
    before = forwards(metrics)
    begun = time.perf_counter()
    for thread in threads:
        thread.measuring.set()
    time.sleep(seconds)
    for thread in threads:
        thread.measuring.clear()
    elapsed = time.perf_counter() - begun
    after = forwards(metrics)
    for thread in threads:
        thread.stopping.set()
    for thread in threads:
        thread.join(60)
    latencies = np.array([latency for thread in threads for latency in thread.latencies]) * 1000
    outside = np.median([seconds for thread in threads for seconds in thread.outside]) * 1000
    count, total = after[0] - before[0], after[1] - before[1]
    p50, p95 = np.quantile(latencies, (0.5, 0.95))
    return Row(len(latencies) / elapsed, float(p50), float(p95), total / max(1.0, count), float(outside))


def forwards(metrics: str) -> tuple[float, float]:
    """Returns the forward passes so far, and the observations in them."""
    with urllib.request.urlopen(metrics) as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    name = "longarm_service_batch_size"
    return float(lines[f"{name}_count"]), float(lines[f"{name}_sum"])


def make_checkpoint(policy: str, folder: Path, hidden_size: int, layers: int, image_size: int) -> Path:
    """Makes the policy to serve, with random weights."""
    if policy == "act":
        from lerobot_robot_longarm_sim.checkpoint import make_checkpoint as make_act

        return make_act(folder / "act")
    from bench.smolvla_checkpoint import make_smolvla

    return make_smolvla(folder / "smolvla", hidden_size=hidden_size, layers=layers, image_size=image_size)


def main() -> int:
    """Prints one row per number of robots and size of batches."""
    parser = argparse.ArgumentParser(description="Measure how many robots one service serves.")
    parser.add_argument("--policy", choices=("act", "smolvla"), default="act", help="made with random weights")
    parser.add_argument("--checkpoint", help="a checkpoint for six joints, front and wrist, instead")
    parser.add_argument("--hidden-size", type=int, default=64, help="of SmolVLA; its own is 960")
    parser.add_argument("--layers", type=int, default=2, help="of SmolVLA; its own are 16")
    parser.add_argument("--image-size", type=int, default=64, help="of SmolVLA; its own is 512")
    parser.add_argument("--device", default="cpu", help="of the policy")
    parser.add_argument("--robots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--max_batch_size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--batch_window", type=float, default=0.003, help="in seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="per row")
    options = parser.parse_args()
    lines = [
        "| robots | max_batch_size | chunks/s | latency ms p50 / p95 | observations per pass | outside the pass ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = options.checkpoint or str(
            make_checkpoint(options.policy, folder, options.hidden_size, options.layers, options.image_size)
        )
        for size in options.max_batch_size:
            with service(folder, options.device, size, options.batch_window) as (address, metrics):
                for robots in options.robots:
                    row = measure(address, metrics, checkpoint, robots, options.seconds)
                    latency = f"{row.p50:.0f} / {row.p95:.0f}"
                    numbers = f"{row.rate:.1f} | {latency} | {row.batch_size:.1f} | {row.outside_ms:.1f}"
                    lines.append(f"| {robots} | {size} | {numbers} |")
                    sys.stderr.write(lines[-1] + "\n")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
