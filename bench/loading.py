"""What a robot that runs notices of others' policies that load, fail and go: one service on this machine, no link.

usage: python -m bench.loading [--rounds 6] [--seconds 10] [--pace 10] [--work out/bench]

A robot with a small ACT asks at an even pace and is timed, in turn while nothing else happens and while another robot
opens session after session: of a SmolVLA, of another ACT (each drives the other out), of a checkpoint whose weights are
broken, and of a directory that is not there. Prints Markdown, and writes it to bench/results/loading.md.
"""

import argparse
import itertools
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np

from bench.fleet import FPS, HEIGHT, WIDTH, LongarmRobot
from bench.peers import Longarm
from bench.publish import publish
from bench.service import serving
from bench.smolvla_checkpoint import make_smolvla
from lerobot_robot_longarm_sim.checkpoint import make_checkpoint as make_act
from lerobot_robot_longarm_sim.joints import JOINTS
from lerobot_robot_longarm_sim.longarm_sim import CAMERAS
from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_wire.errors import from_rpc_error

logger = logging.getLogger(__name__)


class Victim(threading.Thread):
    """A robot that asks at an even pace, and keeps how long it waited, by what was going on meanwhile."""

    def __init__(self, port: int, checkpoint: Path, pace: float) -> None:
        super().__init__(daemon=True)
        self._robot = LongarmRobot(0, port, checkpoint, "cpu")
        self._pace = pace
        self.phase = ""
        self.latencies: dict[str, list[float]] = {"quiet": [], "loads": []}
        self.failures = 0

    def run(self) -> None:
        """Asks until the phase is "end"."""
        due = time.monotonic()
        while (phase := self.phase) != "end":
            try:
                answer = self._robot.ask()
            except Exception:
                logger.exception("The robot's call failed")
                self.failures += 1
            else:
                if phase and phase == self.phase:
                    self.latencies[phase].append(1000 * (answer.answered - answer.asked))
            due = max(due + 1 / self._pace, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


class Others(threading.Thread):
    """Opens and closes sessions of one policy after another while told to, and counts what came of them."""

    def __init__(self, port: int, names: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._stub = pb_grpc.PolicyServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
        self._names = itertools.cycle(names)
        joints = [f"{joint}.pos" for joint in JOINTS]
        cameras = [pb.CameraSpec(name=name, height=HEIGHT, width=WIDTH) for name in CAMERAS]
        self._robot = pb.RobotSpec(action_names=joints, state_names=joints, cameras=cameras, fps=FPS)
        self.active = threading.Event()
        self.opened = self.refused = 0

    def run(self) -> None:
        """Works until the service is gone."""
        for name in self._names:
            self.active.wait()
            try:
                *_, last = self._stub.OpenSession(
                    pb.OpenSessionRequest(pretrained_name_or_path=name, robot=self._robot)
                )
            except grpc.RpcError as error:
                if from_rpc_error(error) is None:
                    return
                self.refused += 1
            else:
                self.opened += 1
                self._stub.CloseSession(pb.CloseSessionRequest(session_id=last.session.session_id))


def make_policies(work: Path) -> tuple[Path, list[str]]:
    """Returns the robot's policy, and what the others ask for."""
    act = make_act(work / "act", height=64, width=64)
    twin, broken = work / "twin", work / "broken"
    for copy in (twin, broken):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(act, copy)
    (broken / "model.safetensors").write_bytes(b"nothing")
    smolvla = make_smolvla(work / "smolvla", hidden_size=64, layers=2, image_size=64)
    return act, [str(smolvla), "/nowhere", str(twin), str(broken)]


def page(latencies: dict[str, list[float]], failures: int, opened: int, refused: int, pace: float) -> str:
    """Returns the results as Markdown."""
    found = {phase: np.quantile(values, (0.5, 0.95, 0.99)) for phase, values in latencies.items()}
    rows = [
        f"| {phase} | {len(latencies[phase])} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {max(latencies[phase]):.1f} |"
        for phase, (p50, p95, p99) in found.items()
    ]
    ratios = " | ".join(f"{ratio:.2f}" for ratio in found["loads"] / found["quiet"])
    return "\n".join(
        [
            "# A robot beside others' loads",
            "",
            "Made by `python -m bench.loading`. Do not edit.",
            "",
            f"A robot with a small ACT asks {pace:g} times a second, and others open sessions, one after another, of a",
            "SmolVLA, another ACT, a broken checkpoint and a directory that is not there. Everything is on the CPU,",
            f"with {os.cpu_count()} cores. {opened} policies were loaded. {refused} loads failed, and {failures} calls",
            "of the robot that was there.",
            "",
            "| meanwhile | observations | p50, ms | p95, ms | p99, ms | most, ms |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            f"| ratio | | {ratios} | |",
            "",
        ]
    )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="of quiet, and of loads")
    parser.add_argument("--seconds", type=float, default=10.0, help="per half of a round")
    parser.add_argument("--pace", type=float, default=10.0, help="observations per second")
    parser.add_argument("--work", type=Path, default=Path("out/bench/loading"), help="folder of checkpoints")
    options = parser.parse_args()
    work = options.work.resolve()
    act, names = make_policies(work)
    with tempfile.TemporaryDirectory(prefix="longarm-bench-") as scratch:
        peer = Longarm()
        server = serving(peer, Path(scratch) / "service", act, ("--max_loaded_policies=2", "--torch_threads=1"))
        try:
            victim = Victim(peer.port, act, options.pace)
            others = Others(peer.port, names)
            for thread in (victim, others):
                thread.start()
            for _ in range(options.rounds):
                for phase in ("quiet", "loads"):
                    victim.phase = ""
                    if phase == "loads":
                        others.active.set()
                    else:
                        others.active.clear()
                    # A load that began goes on
                    time.sleep(1 if phase == "loads" else 6)
                    victim.phase = phase
                    time.sleep(options.seconds)
            victim.phase = "end"
            victim.join()
        finally:
            server.stop()
    publish("loading", page(victim.latencies, victim.failures, others.opened, others.refused, options.pace))


if __name__ == "__main__":
    main()
