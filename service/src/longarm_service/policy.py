"""The boundary between the service and what runs policies. Nothing here knows LeRobot or torch.

The service sees a ServedPolicy, which as a rule runs in a process of its own; there it is a LoadedPolicy.

Threads. load and open_processors are called on any thread, and answer on one thread per policy; there everything that
belongs to a prediction (preprocess, predict, postprocess) happens in this order. Steps of other sessions may come
between.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire.rtc import RtcConfig, RtcPrefix
from longarm_wire.specs import PolicySpec

# Takes news of a load; called on the thread that loads. Raises LoadAbandonedError, to be let through, when nobody waits
# for the policy any more
Report = Callable[[pb.Progress], None]
# What the hub calls the revision that it gives unless asked for another
MAIN = "main"


class LoadAbandonedError(Exception):
    """A load was given up: nobody waits for it any more."""


@dataclass(frozen=True)
class PolicyChoice:
    """What to load, and how. Two robots with equal choices share one loaded policy.

    Attributes:
      pretrained_name_or_path: Directory, or name on the model hub.
      revision: On the hub; empty for the default one.
      device: Empty for the service's default.
      dtype: "float32", "bfloat16" or "float16"; empty for the service's default.
    """

    pretrained_name_or_path: str
    revision: str = ""
    device: str = ""
    dtype: str = ""


def choice_named(name: str) -> PolicyChoice:
    """Returns the policy that a setting means: a directory, a name on the hub, or name@revision."""
    if is_directory(name):
        return PolicyChoice(name)
    hub_name, _, revision = name.partition("@")
    return PolicyChoice(hub_name, revision)


def resolved(choice: PolicyChoice) -> PolicyChoice:
    """Returns choice in its one spelling: a directory as where it really lies, the main revision as none."""
    if is_directory(choice.pretrained_name_or_path):
        return replace(choice, pretrained_name_or_path=str(Path(choice.pretrained_name_or_path).resolve()))
    return replace(choice, revision="") if choice.revision == MAIN else choice


def is_directory(name: str) -> bool:
    """Returns whether name is a directory here, and so no name on the hub. Peers may send any text."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Fingerprint:
    """Tells one loaded policy from another; the fields of the message of this name."""

    policy_type: str
    pretrained_name_or_path: str
    revision: str
    digest: str

    def to_proto(self) -> pb.PolicyFingerprint:
        """Returns the fingerprint as a message."""
        return pb.PolicyFingerprint(
            policy_type=self.policy_type,
            pretrained_name_or_path=self.pretrained_name_or_path,
            revision=self.revision,
            digest=self.digest,
        )


@dataclass(frozen=True)
class Observation:
    """One observation in the policy's names.

    Attributes:
      state: float32, shape (state_dim,); empty if the policy looks at none.
      images: From the policy's feature key to what Processors.prepare_frame returned for the frame.
      task: Instruction; may be empty.
      robot_type: LeRobot's name of the robot's type.
    """

    state: np.ndarray
    images: Mapping[str, Any]
    task: str
    robot_type: str


@dataclass(frozen=True)
class Guidance:
    """How real-time chunking guides one prediction.

    Attributes:
      config: The session's settings.
      delay_ticks: Actions that the robot is expected to execute before it has the chunk.
      prefix: What Processors.anchored returned: the unexecuted actions in model space. None if there are none.
    """

    config: RtcConfig
    delay_ticks: int = 0
    prefix: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Order:
    """One prediction that is asked for.

    Attributes:
      processors: What open_processors returned for the session.
      observation: What the robot sees.
      new_episode: Whether processors must forget the past first.
      rtc: Settings of real-time chunking; None to not use it.
      prefix: The actions that the robot has still to execute. None if there are none, or without real-time chunking.
    """

    processors: Any
    observation: Observation
    new_episode: bool = False
    rtc: RtcConfig | None = None
    prefix: RtcPrefix | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """A chunk as the policy gives it.

    Attributes:
      actions: Robot space, float32, shape (steps, action_dim).
      model_actions: The same in model space, float32, shape (steps, model_action_dim). None without real-time chunking.
      durations: Seconds by stage: "preprocess", "predict" and "postprocess".
    """

    actions: np.ndarray
    model_actions: np.ndarray | None
    durations: dict[str, float]


class SessionProcessors(ABC):
    """What the service sees of a session's processors."""

    @abstractmethod
    def prepare_frame(self, key: str, frame: np.ndarray) -> Any:
        """Returns a camera's frame as preprocess wants it in an observation: what can be done while it waits.

        On any thread, several at a time.

        Args:
          key: The policy's feature key.
          frame: uint8 of shape (height, width, 3), RGB.
        """

    def close(self) -> None:  # noqa: B027 - for those who have something to do
        """Forgets them: the session has ended. Never waits."""


class Processors(SessionProcessors):
    """What one session keeps around the forward pass: the checkpoint's own processors, with a memory of their own."""

    @abstractmethod
    def preprocess(self, observation: Observation) -> Any:
        """Returns what LoadedPolicy.predict takes."""

    @abstractmethod
    def postprocess(self, chunk: Any) -> np.ndarray:
        """Returns robot-space actions of a chunk that LoadedPolicy.predict returned for the last observation.

        Returns:
          float32, shape (steps, action_dim).
        """

    def anchored(self, prefix: RtcPrefix) -> np.ndarray:
        """Returns prefix in model space as of the observation that preprocess took last.

        Returns:
          float32, shape (steps, model_action_dim).
        """
        return prefix.model_actions

    @abstractmethod
    def in_model_space(self, chunk: Any) -> np.ndarray:
        """Returns what a chunk that LoadedPolicy.predict returned holds, as it is.

        Returns:
          float32, shape (steps, model_action_dim), of its own memory.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forgets the past: an episode begins."""


class ServedPolicy(ABC):
    """A policy in memory, warmed up, wherever that is. Nothing of one session reaches another, so that they can
    share it.

    Attributes:
      spec: What it wants and gives.
      fingerprint: What exactly it is.
      saved_renames: The rename_map that the checkpoint was trained with, robot's keys to policy's.
    """

    spec: PolicySpec
    fingerprint: Fingerprint
    saved_renames: Mapping[str, str]

    @property
    def takes_batches(self) -> bool:
        """Whether several observations may share a forward pass."""
        return False

    @property
    def failure(self) -> str | None:
        """Why it cannot be used any more, None if it can. Once it failed, it has failed for ever."""
        return None

    @abstractmethod
    def open_processors(self, action_names: Sequence[str] = ()) -> SessionProcessors:
        """Returns fresh processors for one session. May read files.

        Args:
          action_names: The robot's, for a checkpoint that tells none.
        """

    @abstractmethod
    def answer(self, orders: Sequence[Order], on_forward: Callable[[int], object]) -> list[Answer | Exception]:
        """Returns the chunk of each order, or why there is none. What fails for one of them fails for no other.

        Args:
          orders: Of different sessions. Those whose observations are alike in shape may share a forward pass.
          on_forward: Called for each forward pass with the number of observations in it.

        Returns:
          Per order an answer, or WireError, POLICY_FAILED as a rule, with an id that is in the log.

        Raises:
          WireError: POLICY_FAILED; there is none for anyone.
        """

    def close(self) -> None:  # noqa: B027
        """Frees its memory: nobody uses it any more. Never waits."""


class LoadedPolicy(ServedPolicy):
    """A policy in the memory of this process. takes_batches says whether predict_batch and shape_of work."""

    @abstractmethod
    def open_processors(self, action_names: Sequence[str] = ()) -> Processors:
        """See ServedPolicy."""

    def turn_to(self, processors: Any) -> None:
        """Says whose prediction comes next, so that a policy that remembers forgets other sessions and past episodes.

        Args:
          processors: The session's, as open_processors returned them.
        """

    def answer(self, orders: Sequence[Order], on_forward: Callable[[int], object]) -> list[Answer | Exception]:
        """Takes orders through the stages; see ServedPolicy."""
        # Imported here: the stages are made of what is declared above and below
        from longarm_service import stages

        return stages.answer(self, orders, on_forward)

    def works(self) -> bool:
        """Returns whether it still can predict, after a prediction failed: an error of the device may be for good."""
        return True

    @abstractmethod
    def predict(self, prepared: Any, guidance: Guidance | None = None) -> Any:
        """Returns the chunk in model space for what Processors.preprocess returned. Whatever it raises is its fault.

        Args:
          prepared: One observation.
          guidance: Of this prediction alone; for policies that support real-time chunking.
        """

    def predict_batch(self, prepared: Sequence[Any]) -> list[Any]:
        """Returns the chunk of each of several observations of equal shape_of, from one forward pass."""
        raise NotImplementedError

    def shape_of(self, prepared: Any) -> Hashable:
        """Returns what must be equal for two observations to be predicted together."""
        raise NotImplementedError


@dataclass(frozen=True)
class DeviceMemory:
    """How full a GPU is. utilization is 0 to 1, None where unknown; the rest is bytes."""

    device: str
    allocated_bytes: int
    reserved_bytes: int
    total_bytes: int
    utilization: float | None


class PolicyLoader(ABC):
    """Loads policies.

    Attributes:
      device: Default device, resolved: never "auto".
      dtype: Default type to cast weights to; empty for none.
      device_name: Human name of the device; empty if unknown.
      library_versions: From library ("lerobot", "torch") to its version.
    """

    device: str
    dtype: str
    device_name: str
    library_versions: Mapping[str, str]

    @property
    def spoiled(self) -> bool:
        """Whether this process was forked from one that used the device before, so that it cannot use it."""
        return False

    @property
    def failure(self) -> str | None:
        """Why nothing can be loaded any more, None if it can."""
        return None

    @abstractmethod
    def load(self, choice: PolicyChoice, report: Report) -> ServedPolicy:
        """Returns the chosen policy, warmed up, fetched from the hub before that if need be.

        Reports PROGRESS_STAGE_FETCHING while it is the hub that it waits for, and another stage at the end of that.

        Raises:
          WireError: POLICY_NOT_FOUND, POLICY_NOT_ALLOWED, HUB_UNREACHABLE, POLICY_LOAD_FAILED, POLICY_UNSUPPORTED, or
            INVALID_REQUEST for a device or dtype that is not there; the message names the file or the thing.
          LoadAbandonedError: What report raised.
        """

    @abstractmethod
    def is_current(self, policy: ServedPolicy) -> bool:
        """Returns whether the files that policy came from are still the same. Takes milliseconds; on any thread."""

    @abstractmethod
    def device_memory(self) -> list[DeviceMemory]:
        """Returns how full each GPU in use is; empty without one."""

    def close(self) -> None:  # noqa: B027
        """Ends every policy that is left."""
