"""What a robot has and what a policy wants, and whether the two fit."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire.errors import Reason, WireError
from longarm_wire.frame_sizes import Size, difference, excess, size_to_send
from longarm_wire.images import MAX_PIXELS

IMAGES_PREFIX = "observation.images."
# More than any robot has. What a stranger sends is compared name by name
MAX_NAMES = 256
MAX_CAMERAS = 16
MAX_NAME_CHARACTERS = 128
# Of so many misfits of one kind a message tells: more would not arrive
MOST_TOLD = 8
# From this likeness on a name may be meant for another
_ALIKE = 0.5
# LeRobot's name of a camera that a policy was made with and that no robot has; the policy fills it in itself
_EMPTY_CAMERA = f"{IMAGES_PREFIX}empty_camera"


@dataclass(frozen=True)
class CameraSpec:
    """One camera's RGB frames: name without prefix, size in pixels."""

    name: str
    height: int
    width: int

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.height, self.width


@dataclass(frozen=True)
class RobotSpec:
    """A robot as a policy sees it. The order of names is the order of values on the wire.

    Attributes:
      robot_type: LeRobot's name of the type, for messages.
      action_names: Names of action values.
      state_names: Names of joint state values.
      cameras: The robot's cameras.
      fps: Ticks per second.
    """

    robot_type: str
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    cameras: tuple[CameraSpec, ...]
    fps: float

    def to_proto(self) -> pb.RobotSpec:
        """Returns the spec as a message."""
        return pb.RobotSpec(
            robot_type=self.robot_type,
            action_names=self.action_names,
            state_names=self.state_names,
            cameras=[pb.CameraSpec(name=c.name, height=c.height, width=c.width) for c in self.cameras],
            fps=self.fps,
        )

    @classmethod
    def from_proto(cls, message: pb.RobotSpec) -> "RobotSpec":
        """Returns the spec that message holds.

        Raises:
          WireError: INVALID_REQUEST; a list has duplicates or is too long, there are no actions, or a size or fps is
            out of bounds.
        """
        for what, count, most in (
            ("action names", len(message.action_names), MAX_NAMES),
            ("state names", len(message.state_names), MAX_NAMES),
            ("cameras", len(message.cameras), MAX_CAMERAS),
        ):
            if count > most:
                raise WireError(Reason.INVALID_REQUEST, f"Expected at most {most} {what}, found {count}")
        cameras = tuple(CameraSpec(c.name, c.height, c.width) for c in message.cameras)
        for what, names in (
            ("action names", message.action_names),
            ("state names", message.state_names),
            ("cameras", [c.name for c in cameras]),
            ("robot types", [message.robot_type or "none"]),
        ):
            check_names(what, names)
            if len(set(names)) != len(names) or "" in names:
                raise WireError(Reason.INVALID_REQUEST, f"Expected distinct, non-empty {what}, found {list(names)}")
        if not message.action_names:
            raise WireError(Reason.INVALID_REQUEST, "Expected at least one action name, found none")
        if not (message.fps > 0 and math.isfinite(message.fps)):
            raise WireError(Reason.INVALID_REQUEST, f"Expected a positive, finite fps, found {message.fps}")
        for c in cameras:
            if c.height < 1 or c.width < 1 or c.height * c.width > MAX_PIXELS:
                raise WireError(
                    Reason.INVALID_REQUEST,
                    f"Expected frames of 1 to {MAX_PIXELS} pixels, found {c.width}x{c.height} for camera {c.name!r}",
                )
        return cls(message.robot_type, tuple(message.action_names), tuple(message.state_names), cameras, message.fps)


@dataclass(frozen=True)
class PolicySpec:
    """What a policy wants and gives.

    Attributes:
      policy_type: LeRobot's type, for messages.
      action_dim: Values of one robot-space action.
      state_dim: Values of the joint state; 0 if the policy looks at none.
      cameras: What it looks at, by full feature key such as "observation.images.top", with the height and width that
        its configuration names.
      chunk_size: Actions per prediction.
      action_names: Names in order, where the checkpoint tells them.
      supports_rtc: Whether it can condition a chunk on the unexecuted prefix of the last one.
      model_action_dim: Values of one model-space action; 0 without supports_rtc.
      frame_box: Height and width of the box into which it scales every frame by itself, keeping its aspect, before
        anything else looks at it. None if it does not, or in another way than the edge resizes.
      n_action_steps: Actions that LeRobot executes of a chunk before it predicts anew, where the checkpoint says so;
        else 0.
      temporal_ensemble_coeff: How LeRobot weights chunks that have an action for the same step, where the checkpoint
        says that it does.
      masks_missing_cameras: Whether it does without a camera by masking it.
    """

    policy_type: str
    action_dim: int
    state_dim: int
    cameras: Mapping[str, Size]
    chunk_size: int
    action_names: tuple[str, ...] | None = None
    supports_rtc: bool = False
    model_action_dim: int = 0
    frame_box: Size | None = None
    n_action_steps: int = 0
    temporal_ensemble_coeff: float | None = None
    masks_missing_cameras: bool = False


@dataclass(frozen=True)
class Agreement:
    """How one robot's observations become one policy's.

    Attributes:
      state_names: What the state of a request holds, in order.
      cameras: What the edge sends: the robot's names, in the sizes to send.
      policy_keys: From the robot's camera name to the policy's feature key.
      notes: What a person should know though it runs, each with what to do about it.
    """

    state_names: tuple[str, ...]
    cameras: tuple[CameraSpec, ...]
    policy_keys: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_names(what: str, names: Iterable[str]) -> None:
    """Raises WireError(INVALID_REQUEST) if one of names is too long, saying what they name."""
    for name in names:
        if len(name) > MAX_NAME_CHARACTERS:
            raise WireError(
                Reason.INVALID_REQUEST,
                f"Expected {what} of at most {MAX_NAME_CHARACTERS} characters, found {len(name)} in {name[:16]!r}…",
            )


def agree(
    robot: RobotSpec, policy: PolicySpec, rename_map: Mapping[str, str], masked_cameras: Sequence[str] = ()
) -> Agreement:
    """Returns how robot's observations become policy's.

    A camera that the policy does not look at is left out. See frame_sizes for the size in which a camera is sent.

    Args:
      robot: What is there.
      policy: What is wanted.
      rename_map: From the robot's observation keys to the policy's, as LeRobot's rename_map.
      masked_cameras: The policy's keys of cameras that nothing is sent for.

    Raises:
      WireError: SPEC_MISMATCH; the message lists every problem with the nearest name and the rename that mends it.
    """
    problems = [*_action_problems(robot, policy), *_state_problems(robot, policy)]
    robot_keys = {IMAGES_PREFIX + camera.name: camera for camera in robot.cameras}
    problems += [
        f"rename_map renames {key!r}, which the robot does not have. It has {_listed(robot_keys)}"
        f"{_nearest(key, list(robot_keys))}."
        for key in rename_map
        if key not in robot_keys
    ]
    by_policy_key = {rename_map.get(key, key): camera for key, camera in robot_keys.items()}
    if len(by_policy_key) != len(robot_keys):
        problems.append(f"rename_map gives two cameras one name: {dict(rename_map)}")
    wanted = {key: size for key, size in policy.cameras.items() if not key.startswith(_EMPTY_CAMERA)}
    problems += _masking_problems(policy, wanted, masked_cameras)
    wanted = {key: size for key, size in wanted.items() if key not in masked_cameras}
    # A camera that the policy can do without is offered to be masked
    masked = masked_cameras if policy.masks_missing_cameras else None
    problems += _camera_problems(wanted, by_policy_key, robot_keys, rename_map, masked)
    box, cameras = policy.frame_box, {key: by_policy_key[key] for key in wanted if key in by_policy_key}
    problems += filter(None, (excess(key, c.name, c.size, wanted[key], box) for key, c in cameras.items()))
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise WireError(
            Reason.SPEC_MISMATCH,
            f"The robot ({robot.robot_type}) does not fit the policy ({policy.policy_type}):\n{lines}",
        )
    notes = [difference(key, c.name, c.size, wanted[key], box) for key, c in cameras.items()]
    return Agreement(
        state_names=robot.state_names if policy.state_dim else (),
        cameras=tuple(CameraSpec(c.name, *size_to_send(c.size, box)) for c in cameras.values()),
        policy_keys={camera.name: key for key, camera in cameras.items()},
        notes=tuple(filter(None, notes)),
    )


def _action_problems(robot: RobotSpec, policy: PolicySpec) -> Iterable[str]:
    if policy.action_names is not None:
        yield from _name_problems("action", robot.action_names, policy.action_names)
    elif len(robot.action_names) != policy.action_dim:
        yield (
            f"The policy gives {policy.action_dim} action values and the robot takes {len(robot.action_names)}: "
            f"{_listed(robot.action_names)}. Use a checkpoint trained on this type of robot."
        )


def _state_problems(robot: RobotSpec, policy: PolicySpec) -> Iterable[str]:
    if policy.state_dim and len(robot.state_names) != policy.state_dim:
        yield (
            f"The policy wants {policy.state_dim} state values and the robot has {len(robot.state_names)}: "
            f"{_listed(robot.state_names)}. Use a checkpoint trained on this type of robot."
        )


def _name_problems(what: str, robot: Sequence[str], policy: Sequence[str]) -> Iterable[str]:
    if tuple(robot) == tuple(policy):
        return
    if sorted(robot) == sorted(policy):
        yield f"The {what} names are in another order. Policy: {_listed(policy)}. Robot: {_listed(robot)}."
        return
    for one, its, other, others in (("policy", policy, "robot", robot), ("robot", robot, "policy", policy)):
        known = set(others)
        alone = [name for name in its if name not in known]
        for name in alone[:MOST_TOLD]:
            yield f"The {one} has the {what} {name!r}, which the {other} does not{_nearest(name, others)}."
        if len(alone) > MOST_TOLD:
            yield f"The {one} has {len(alone) - MOST_TOLD} more {what}s that the {other} does not have."


def _masking_problems(policy: PolicySpec, wanted: Mapping[str, object], masked: Sequence[str]) -> Iterable[str]:
    if masked and not policy.masks_missing_cameras:
        yield f"A policy of type {policy.policy_type!r} needs all of its cameras. Leave masked_cameras out."
        return
    unknown = next((key for key in masked if key not in wanted), None)
    if unknown is not None:
        yield f"masked_cameras names {unknown!r}, which the policy does not look at. It looks at {_listed(wanted)}."
    if masked and set(wanted) <= set(masked):
        yield f"masked_cameras leaves the policy none of its cameras: {_listed(wanted)}."


def _camera_problems(
    wanted: Mapping[str, Size],
    offered: Mapping[str, CameraSpec],
    robot_keys: Mapping[str, CameraSpec],
    rename_map: Mapping[str, str],
    masked: Sequence[str] | None,
) -> Iterable[str]:
    # Only an unused camera can become a missing one, and each only once
    spare = [key for key, camera in robot_keys.items() if not any(offered.get(w) is camera for w in wanted)]
    # What mends everything at once: the renames of today that make sense, and the new ones
    mended = {key: value for key, value in rename_map.items() if key in robot_keys}
    # A camera that has the name already comes first: it is not to be given to another
    missing = sorted((key for key in wanted if key not in offered), key=lambda key: key not in spare)
    # Each missing one is told of one spare camera, as long as there are some
    lacking = missing[len(spare) :]
    for key in missing:
        if key in spare:
            spare.remove(key)
            del mended[key]
            yield (
                f"The policy looks at {key!r}, which the robot has and rename_map renames to {rename_map[key]!r}. "
                "Leave that entry out."
            )
            continue
        if not spare:
            yield (
                f"The policy looks at {key!r} and the robot has no camera left for it. It has "
                f"{_listed(robot_keys) or 'none'}. Add a camera to --robot.cameras"
                + ("." if masked is None or not robot_keys else _or_masked([*masked, *lacking]))
            )
            continue
        partner = max(spare, key=lambda name: _likeness(key, name))
        spare.remove(partner)
        mended[partner] = key
        yield (
            f"The policy looks at {key!r}, which the robot does not have. It has {_listed(robot_keys)}; the nearest "
            f"unused name is {partner!r}. If they show the same: rename_map={_json({partner: key})}"
        )
    if mended and missing and (len(missing) > 1 or rename_map):
        yield f"Taken together: rename_map={_json(mended)}"


def _or_masked(keys: Sequence[str]) -> str:
    return f", or let the policy do without: masked_cameras={_json(keys)}"


def _json(value: Mapping[str, str] | Sequence[str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _nearest(name: str, candidates: Sequence[str]) -> str:
    found = max(candidates, key=lambda candidate: _likeness(name, candidate), default="")
    return f"; the nearest name is {found!r}" if _likeness(name, found) >= _ALIKE else ""


def _likeness(one: str, other: str) -> float:
    """Returns how much two names have in common, 0 to 1: the share of their pairs of letters (Dice's coefficient).

    The time is in proportion to their length. That of difflib grows with the cube, and the names are a stranger's.
    """
    pairs, others = (Counter(itertools.pairwise(f" {name} ")) for name in (one, other))
    return 2 * (pairs & others).total() / (pairs.total() + others.total())
