"""Robots that share one server: each asks for a chunk as soon as it has the last one, over a connection of its own."""

import json
import pickle
import threading
import time
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation, map_robot_keys_to_lerobot_features
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks

from lerobot_robot_longarm_sim.config_longarm_sim import LongarmSimConfig
from lerobot_robot_longarm_sim.joints import JOINTS
from lerobot_robot_longarm_sim.longarm_sim import CAMERAS, LongarmSim
from longarm_edge.policy_client import PolicyChoice, PolicyClient
from longarm_edge.robot import RobotReading
from longarm_wire.images import DEFAULT_JPEG_QUALITY, Codec
from longarm_wire.specs import CameraSpec, RobotSpec

FPS = 30
CHUNK_SIZE = 50
OPEN_SECONDS = 600.0
TASK = "pick the cube"
# As what made_policy makes looks at
HEIGHT, WIDTH = 240, 320


@dataclass(frozen=True)
class Answer:
    """A chunk, or a call that brought none.

    Attributes:
      asked, answered: When, monotonic seconds.
      own: Whether it is a chunk for what this robot asked. Not so: nothing came, or what another robot asked for.
      outside_seconds: Of a call what is neither encoding nor waiting for a turn nor the forward pass; NaN if unknown.
    """

    asked: float
    answered: float
    own: bool
    outside_seconds: float = float("nan")


class Asker(threading.Thread):
    """One robot. Connects when made, asks from start to stop, and keeps every answer."""

    def __init__(self, number: int) -> None:
        super().__init__(daemon=True)
        self.answers: list[Answer] = []
        self._stopping = threading.Event()
        ramp = np.linspace(0, 255, WIDTH, dtype=np.uint8)
        frame = np.dstack([np.tile(np.roll(ramp, 40 * number + shift), (HEIGHT, 1)) for shift in (0, 100, 200)])
        self.joints = np.full(len(JOINTS), number, np.float32)
        self.frames = {CAMERAS[0]: frame, CAMERAS[1]: frame[::-1].copy()}

    def run(self) -> None:
        """Asks until stopped."""
        while not self._stopping.is_set():
            self.answers.append(self.ask())

    def stop(self) -> None:
        """Lets the last call end, and hangs up."""
        self._stopping.set()
        self.join(60)
        self.close()

    @abstractmethod
    def ask(self) -> Answer:
        """Sends an observation and waits for its answer."""

    @abstractmethod
    def close(self) -> None:
        """Hangs up."""


class LongarmRobot(Asker):
    """Asks longarm-service."""

    def __init__(self, number: int, port: int, checkpoint: Path, device: str) -> None:  # noqa: ARG002
        super().__init__(number)
        cameras = tuple(CameraSpec(name, HEIGHT, WIDTH) for name in CAMERAS)
        names = tuple(f"{joint}.pos" for joint in JOINTS)
        self._client = PolicyClient(f"127.0.0.1:{port}", Codec.JPEG, DEFAULT_JPEG_QUALITY)
        spec = RobotSpec("bench_arm", names, names, cameras, FPS)
        choice = PolicyChoice(str(checkpoint), task=TASK)
        self._session = self._client.open_session(choice, spec, timeout=OPEN_SECONDS)
        self._reading = RobotReading(self.joints, self.frames)

    def ask(self) -> Answer:
        """See Asker."""
        asked = time.monotonic()
        reply, encoding, _ = self._client.predict(self._session, self._reading, episode=0, tick=0, timeout=60)
        answered = time.monotonic()
        elsewhere = encoding + reply.server_seconds["queue"] + reply.server_seconds["predict"]
        return Answer(asked, answered, own=True, outside_seconds=answered - asked - elsewhere)

    def close(self) -> None:
        """See Asker."""
        self._client.close_session(self._session)
        self._client.close()


class StockRobot(Asker):
    """Asks LeRobot's policy server as LeRobot's robot client does."""

    # So that a chunk tells whose observation it is for
    TIMESTEPS_PER_ROBOT = 1_000_000

    def __init__(self, number: int, port: int, checkpoint: Path, device: str) -> None:
        super().__init__(number)
        self._timestep = self._first = number * self.TIMESTEPS_PER_ROBOT
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", grpc_channel_options())
        self._stub = services_pb2_grpc.AsyncInferenceStub(self._channel)
        self._stub.Ready(services_pb2.Empty(), wait_for_ready=True)
        features = map_robot_keys_to_lerobot_features(LongarmSim(LongarmSimConfig(width=WIDTH, height=HEIGHT)))
        config = pickle.dumps(
            RemotePolicyConfig(policy_type(checkpoint), str(checkpoint), features, CHUNK_SIZE, device)
        )
        self._stub.SendPolicyInstructions(services_pb2.PolicySetup(data=config))

    def ask(self) -> Answer:
        """See Asker."""
        asked = time.monotonic()
        self._timestep += 1
        joints = {f"{joint}.pos": float(value) for joint, value in zip(JOINTS, self.joints, strict=True)}
        seen = TimedObservation(time.time(), self._timestep, {**joints, **self.frames, "task": TASK}, must_go=True)
        self._stub.SendObservations(send_bytes_in_chunks(pickle.dumps(seen), services_pb2.Observation, silent=True))
        data = self._stub.GetActions(services_pb2.Empty()).data
        answered = time.monotonic()
        if not data:
            return Answer(asked, answered, own=False)
        timestep = pickle.loads(data)[0].get_timestep()
        return Answer(asked, answered, own=self._first < timestep < self._first + self.TIMESTEPS_PER_ROBOT)

    def close(self) -> None:
        """See Asker."""
        self._channel.close()


def policy_type(checkpoint: Path) -> str:
    """Returns what a checkpoint says that it is."""
    return str(json.loads((checkpoint / "config.json").read_text())["type"])


def idle_share(answers: list[Answer], begun: float, ended: float) -> float:
    """Returns the share of ticks from begun to ended for which a robot that plays its chunks had no action.

    A chunk is for the CHUNK_SIZE ticks from its observation on, and there once it is answered.
    """
    ticks = np.arange(begun, ended, 1 / FPS)
    covered = np.zeros(len(ticks), bool)
    for answer in answers:
        if answer.own:
            covered |= (ticks >= answer.answered) & (ticks < answer.asked + CHUNK_SIZE / FPS)
    return float(1 - covered.mean())
