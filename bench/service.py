"""What a server adds to its policy's own forward: one observation after another on this machine, no robot, no link.

usage: python -m bench.service [--rounds 60] [--work out/bench]

Whatever a round trip takes beyond the forward pass is the server's: receiving, unpacking, preprocessing,
postprocessing, packing, sending, and gRPC on both sides. One policy waits for a fixed time, since LeRobot's server does
not tell how long its forward pass took. While it waits the processor sleeps, and everything after that is slower than
after a policy that computes: Longarm, which tells, is measured with both. Prints Markdown, and writes it to
bench/results/service.md.
"""

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation, map_robot_keys_to_lerobot_features
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks

from bench import config_arm  # noqa: F401 - registers the robot
from bench.cells import SERVER_TIMEOUT, await_that
from bench.checkpoint import CHUNK_SIZE, HEIGHT, WIDTH, make_checkpoint, make_film
from bench.configuration_emulated import POLICY_TYPE
from bench.peers import FPS, Longarm, Peer, Stock, environment
from bench.processes import Child
from bench.publish import publish
from longarm_edge.answers import SERVER_STAGES
from longarm_edge.lerobot_robot import LeRobotRobot, make_robot
from longarm_edge.policy_client import PolicyChoice, PolicyClient
from longarm_wire.images import DEFAULT_JPEG_QUALITY, Codec

INFERENCE = 0.1
WARM_UP = 5


def longarm_rounds(port: int, robot: LeRobotRobot, checkpoint: Path, rounds: int) -> dict[str, np.ndarray]:
    """Returns milliseconds of each round: packing on the edge, the call without the forward, and the service's
    own word by stage.
    """
    packing, outside, own = [], [], []
    stages: dict[str, list[float]] = {stage: [] for stage in SERVER_STAGES if stage != "predict"}
    with PolicyClient(f"127.0.0.1:{port}", Codec.JPEG, DEFAULT_JPEG_QUALITY) as client:
        session = client.open_session(PolicyChoice(str(checkpoint)), robot.spec, timeout=60)
        for number in range(WARM_UP + rounds):
            reply, encoding, call = client.predict(session, robot.observe(), episode=0, tick=number, timeout=10)
            packing.append(encoding)
            outside.append(call - reply.server_seconds["predict"])
            own.append(reply.server_total_seconds - reply.server_seconds["predict"])
            for stage, taken in stages.items():
                taken.append(reply.server_seconds[stage])
        client.close_session(session)
    return {
        "packing on the robot's side": milliseconds(packing),
        "call - forward": milliseconds(outside),
        "of which the service says": milliseconds(own),
    } | {f"of that, {stage}": milliseconds(taken) for stage, taken in stages.items()}


def stock_rounds(port: int, robot: LeRobotRobot, checkpoint: Path, rounds: int) -> dict[str, np.ndarray]:
    """Returns milliseconds of each round: pickling on the client, both calls without the forward."""
    packing, outside = [], []
    features = map_robot_keys_to_lerobot_features(robot.lerobot)
    with grpc.insecure_channel(f"127.0.0.1:{port}", grpc_channel_options()) as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        policy = RemotePolicyConfig(POLICY_TYPE, str(checkpoint), features, CHUNK_SIZE)
        stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(policy)))
        for number in range(WARM_UP + rounds):
            seen = robot.lerobot.get_observation() | {"task": ""}
            begun = time.monotonic()
            data = pickle.dumps(TimedObservation(time.time(), number, seen, must_go=True))
            packed = time.monotonic()
            stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation, silent=True))
            stub.GetActions(services_pb2.Empty())
            packing.append(packed - begun)
            outside.append(time.monotonic() - packed - INFERENCE)
    return {"packing on the robot's side": milliseconds(packing), "call - forward": milliseconds(outside)}


def milliseconds(seconds: list[float]) -> np.ndarray:
    """Returns seconds without those of warming up, as milliseconds."""
    return np.array(seconds[WARM_UP:]) * 1000


def serving(peer: Peer, directory: Path, checkpoint: Path, flags: tuple[str, ...] = ()) -> Child:
    """Starts a peer's server on the loopback, with flags of its own, and waits until it listens."""
    directory.mkdir()
    command = [*peer.server(directory, [checkpoint], everywhere=False), *flags]
    server = Child(command, directory / "server.log", directory, environment(directory))
    await_that(lambda: peer.is_up(directory), SERVER_TIMEOUT, server)
    return server


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="observations to time, after a few to warm up")
    parser.add_argument("--work", type=Path, default=Path("out/bench"), help="folder of checkpoint and film")
    options = parser.parse_args()
    work = options.work.resolve()
    film = make_film(work / "film.npy")
    size = f"{WIDTH}x{HEIGHT}"
    waits = make_checkpoint(work / f"emulated-{size}", INFERENCE)
    computes = make_checkpoint(work / f"act-{size}", 0)
    measures: list[tuple[str, Peer, Path, Callable[[int, LeRobotRobot, Path, int], dict[str, np.ndarray]]]] = [
        ("computes", Longarm(), computes, longarm_rounds),
        ("waits", Longarm(), waits, longarm_rounds),
        ("waits", Stock(), waits, stock_rounds),
    ]
    lines = ["| peer | policy | what | p50, ms | p95, ms |", "| --- | --- | --- | ---: | ---: |"]
    with tempfile.TemporaryDirectory(prefix="longarm-bench-") as scratch:
        robot = make_robot({"type": "longarm_bench", "frames": str(film), "log": f"{scratch}/robot.bin"}, [], FPS)
        robot.connect()
        for number, (kind, peer, checkpoint, measure) in enumerate(measures):
            server = serving(peer, Path(scratch) / str(number), checkpoint)
            try:
                for what, values in measure(peer.port, robot, checkpoint, options.rounds).items():
                    middle, high = np.quantile(values, (0.5, 0.95))
                    lines.append(f"| {peer.name} | {kind} | {what} | {middle:.2f} | {high:.2f} |")
            finally:
                server.stop()
    text = "\n".join(
        [
            "# What a server adds to its policy",
            "",
            "Made by `python -m bench.service`. Do not edit.",
            "",
            f"Two {size} cameras, {options.rounds} observations one after another on one machine, and a policy that",
            f"computes (ACT, one thread) or waits for {INFERENCE * 1000:.0f} ms. Longarm's robot side packs frames as",
            f"JPEG {DEFAULT_JPEG_QUALITY}; LeRobot's pickles them as they are.",
            "",
            *lines,
            "",
        ]
    )
    publish("service", text)


if __name__ == "__main__":
    main()
