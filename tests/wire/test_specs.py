"""Robot and policy are compared before anything moves, and the message names what mends it."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire.errors import Reason, WireError
from longarm_wire.specs import CameraSpec, PolicySpec, RobotSpec, agree

JOINTS = tuple(
    f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
)
FRONT, WRIST, TOP, SIDE = (f"observation.images.{name}" for name in ("front", "wrist", "top", "side"))
ROBOT = RobotSpec(
    robot_type="so101_follower",
    action_names=JOINTS,
    state_names=JOINTS,
    cameras=(CameraSpec("front", 480, 640), CameraSpec("wrist", 240, 320)),
    fps=30,
)
POLICY = PolicySpec(
    policy_type="act",
    action_dim=6,
    state_dim=6,
    cameras={FRONT: (480, 640), WRIST: (240, 320)},
    chunk_size=100,
    action_names=JOINTS,
)


def problems(
    robot: RobotSpec, policy: PolicySpec, rename_map: dict[str, str] | None = None, masked: Sequence[str] = ()
) -> list[str]:
    """Returns the problems that the refusal lists."""
    with pytest.raises(WireError) as refused:
        agree(robot, policy, rename_map or {}, masked)
    assert refused.value.reason is Reason.SPEC_MISMATCH
    head, *lines = refused.value.message.split("\n")
    assert head == f"The robot ({robot.robot_type}) does not fit the policy ({policy.policy_type}):"
    assert all(line.startswith("- ") for line in lines)
    return [line[2:] for line in lines]


def printed_rename(line: str) -> dict[str, str]:
    """Returns the rename_map that a problem names, as a user would paste it."""
    renamed: dict[str, str] = json.loads(line.partition("rename_map=")[2])
    return renamed


def test_what_fits_is_agreed() -> None:
    agreement = agree(ROBOT, POLICY, {})
    assert agreement.state_names == JOINTS
    assert agreement.cameras == ROBOT.cameras
    assert agreement.policy_keys == {"front": FRONT, "wrist": WRIST}


def test_a_policy_that_tells_no_names_fits_by_count() -> None:
    agree(ROBOT, replace(POLICY, action_names=None), {})


def test_a_renamed_camera_keeps_the_robot_name_on_the_wire() -> None:
    agreement = agree(ROBOT, replace(POLICY, cameras={TOP: (480, 640), WRIST: (240, 320)}), {FRONT: TOP})
    assert [camera.name for camera in agreement.cameras] == ["front", "wrist"]
    assert agreement.policy_keys == {"front": TOP, "wrist": WRIST}


def test_two_cameras_may_swap_names() -> None:
    agreement = agree(ROBOT, POLICY, {FRONT: WRIST, WRIST: FRONT})
    assert agreement.cameras == ROBOT.cameras[::-1]
    assert agreement.policy_keys == {"wrist": FRONT, "front": WRIST}


def test_a_missing_camera_names_the_rename_that_mends_it() -> None:
    policy = replace(POLICY, cameras={FRONT: (480, 640), "observation.images.wrist_left": (240, 320)})
    (line,) = problems(ROBOT, policy)
    assert "'observation.images.wrist_left', which the robot does not have" in line
    assert f"It has {FRONT}, {WRIST}; the nearest unused name is {WRIST!r}" in line
    renamed = printed_rename(line)
    assert renamed == {WRIST: "observation.images.wrist_left"}
    assert agree(ROBOT, policy, renamed).policy_keys == {"front": FRONT, "wrist": "observation.images.wrist_left"}


@pytest.mark.parametrize(
    ("wanted", "rename_map"),
    [
        ((TOP, SIDE), {}),
        ((TOP, WRIST), {"observation.images.frnt": TOP}),
        ((TOP, SIDE), {FRONT: TOP}),
        ((TOP, SIDE), {FRONT: TOP, WRIST: TOP}),
        ((TOP, SIDE), {FRONT: "observation.images.nothing"}),
        ((FRONT, SIDE), {WRIST: "observation.images.sode"}),
        ((SIDE, FRONT), {FRONT: TOP}),
    ],
)
def test_the_last_rename_printed_mends_everything(wanted: tuple[str, ...], rename_map: dict[str, str]) -> None:
    """Two missing cameras must not both be offered the same one, and today's renames must not get lost."""
    policy = replace(POLICY, cameras=dict.fromkeys(wanted, (480, 640)))
    lines = [line for line in problems(ROBOT, policy, rename_map) if "rename_map=" in line]
    agreement = agree(ROBOT, policy, printed_rename(lines[-1]))
    assert sorted(agreement.policy_keys.values()) == sorted(wanted)
    assert sorted(agreement.policy_keys) == ["front", "wrist"]


def test_a_camera_that_was_renamed_away_is_not_said_to_be_missing() -> None:
    (line,) = problems(ROBOT, POLICY, {FRONT: TOP})
    assert f"which the robot has and rename_map renames to {TOP!r}. Leave that entry out." in line


def test_too_few_cameras() -> None:
    policy = replace(POLICY, cameras={FRONT: (1, 1), WRIST: (1, 1), TOP: (1, 1)})
    (line,) = problems(ROBOT, policy)
    assert line == (
        f"The policy looks at {TOP!r} and the robot has no camera left for it. It has {FRONT}, {WRIST}. "
        "Add a camera to --robot.cameras."
    )
    assert "It has none." in problems(replace(ROBOT, cameras=()), policy)[0]


def test_a_policy_that_masks_cameras_may_be_told_to_do_without_one() -> None:
    policy = replace(POLICY, masks_missing_cameras=True, cameras=dict.fromkeys((FRONT, TOP, SIDE), (1, 1)))
    lines = problems(ROBOT, policy, {WRIST: SIDE})
    assert lines[0].endswith(f'Add a camera to --robot.cameras, or let the policy do without: masked_cameras=["{TOP}"]')
    agreement = agree(ROBOT, policy, {WRIST: SIDE}, [TOP])
    assert agreement.policy_keys == {"front": FRONT, "wrist": SIDE}
    assert [camera.name for camera in agreement.cameras] == ["front", "wrist"]


def test_what_is_offered_to_be_masked_is_all_that_is_missing() -> None:
    policy = replace(POLICY, masks_missing_cameras=True, cameras=dict.fromkeys((FRONT, WRIST, TOP, SIDE), (1, 1)))
    lines = problems(ROBOT, policy)
    (named,) = {line.partition("masked_cameras=")[2] for line in lines}
    assert agree(ROBOT, policy, {}, json.loads(named)).cameras


@pytest.mark.parametrize(
    ("masked", "words"),
    [
        ([SIDE], f"masked_cameras names {SIDE!r}, which the policy does not look at. It looks at {FRONT}, {WRIST}."),
        ([FRONT, WRIST], f"masked_cameras leaves the policy none of its cameras: {FRONT}, {WRIST}."),
    ],
)
def test_what_cannot_be_masked_is_named(masked: list[str], words: str) -> None:
    assert words in problems(ROBOT, replace(POLICY, masks_missing_cameras=True), masked=masked)


def test_a_policy_that_needs_its_cameras_masks_none() -> None:
    assert problems(ROBOT, POLICY, masked=[WRIST]) == [
        "A policy of type 'act' needs all of its cameras. Leave masked_cameras out."
    ]


def test_an_extra_camera_is_left_out() -> None:
    agreement = agree(ROBOT, replace(POLICY, cameras={WRIST: (240, 320)}), {})
    assert [camera.name for camera in agreement.cameras] == ["wrist"]
    assert agreement.policy_keys == {"wrist": WRIST}


def test_a_policy_without_cameras_gets_none() -> None:
    assert agree(ROBOT, replace(POLICY, cameras={}), {}).cameras == ()


def test_frames_travel_whole_and_a_camera_unlike_the_training_data_is_said() -> None:
    agreement = agree(ROBOT, replace(POLICY, cameras={FRONT: (224, 224), WRIST: (240, 320)}), {})
    assert agreement.cameras == ROBOT.cameras
    (note,) = agreement.notes
    assert note.startswith(f"Camera 'front' gives 640x480 and the policy's configuration names 224x224 for {FRONT!r}")
    assert agree(ROBOT, POLICY, {}).notes == ()


def test_frames_travel_as_a_policy_would_scale_them() -> None:
    agreement = agree(ROBOT, replace(POLICY, cameras={TOP: (224, 224)}, frame_box=(224, 224)), {WRIST: TOP})
    assert agreement.cameras == (CameraSpec("wrist", 168, 224),)
    assert agreement.notes == ()


def test_frames_are_no_larger_than_a_policy_takes_in_good_time() -> None:
    """One robot with cameras of 8 megapixels had the others of its policy wait for seconds."""
    large = replace(ROBOT, cameras=(CameraSpec("front", 2000, 4000), ROBOT.cameras[1]))
    (line,) = problems(large, POLICY)
    assert line.startswith("Camera 'front' gives 4000x2000, which the policy would have to take whole")
    assert "640x480" in line
    assert "Set a smaller width and height" in line
    for policy in (
        replace(POLICY, frame_box=(224, 224)),
        replace(POLICY, cameras=POLICY.cameras | {FRONT: (2000, 4000)}),
        replace(POLICY, cameras={WRIST: (240, 320)}),
    ):
        assert agree(large, policy, {}).cameras
    full_hd = replace(ROBOT, cameras=tuple(CameraSpec(camera.name, 1080, 1920) for camera in ROBOT.cameras))
    assert agree(full_hd, replace(POLICY, cameras={FRONT: (96, 96), WRIST: (96, 96)}), {}).cameras == full_hd.cameras


def test_an_empty_camera_is_no_camera() -> None:
    """LeRobot's policies fill empty_camera_0 in themselves; only that name in full is special."""
    cameras = {**POLICY.cameras, "observation.images.empty_camera_0": (480, 640)}
    assert agree(ROBOT, replace(POLICY, cameras=cameras), {}).cameras == ROBOT.cameras
    (line,) = problems(ROBOT, replace(POLICY, cameras={**POLICY.cameras, "observation.images.no_empty_camera": (1, 1)}))
    assert "no camera left" in line


def test_a_rename_of_a_camera_that_is_not_there() -> None:
    (line,) = problems(ROBOT, POLICY, {"observation.images.fornt": TOP})
    assert line == (
        f"rename_map renames 'observation.images.fornt', which the robot does not have. It has {FRONT}, {WRIST}; "
        f"the nearest name is {FRONT!r}."
    )


@pytest.mark.parametrize("rename_map", [{FRONT: TOP, WRIST: TOP}, {FRONT: WRIST}])
def test_two_cameras_cannot_get_one_name(rename_map: dict[str, str]) -> None:
    policy = replace(POLICY, cameras={rename_map[FRONT]: (480, 640)})
    (line,) = problems(ROBOT, policy, rename_map)
    assert line == f"rename_map gives two cameras one name: {rename_map}"


def test_another_number_of_joints() -> None:
    robot = replace(ROBOT, action_names=JOINTS[:5], state_names=JOINTS[:5])
    lines = problems(robot, replace(POLICY, action_names=None))
    assert lines == [
        (
            f"The policy gives 6 action values and the robot takes 5: {', '.join(JOINTS[:5])}. "
            "Use a checkpoint trained on this type of robot."
        ),
        (
            f"The policy wants 6 state values and the robot has 5: {', '.join(JOINTS[:5])}. "
            "Use a checkpoint trained on this type of robot."
        ),
    ]
    assert problems(robot, POLICY)[0] == "The policy has the action 'gripper.pos', which the robot does not."


def test_another_order_of_joints() -> None:
    turned = JOINTS[::-1]
    assert problems(replace(ROBOT, action_names=turned), POLICY) == [
        f"The action names are in another order. Policy: {', '.join(JOINTS)}. Robot: {', '.join(turned)}."
    ]


def test_a_misnamed_joint_names_the_nearest() -> None:
    names = ("shoulder_pam.pos", *JOINTS[1:])
    assert problems(replace(ROBOT, action_names=names), POLICY) == [
        (
            "The policy has the action 'shoulder_pan.pos', which the robot does not; "
            "the nearest name is 'shoulder_pam.pos'."
        ),
        (
            "The robot has the action 'shoulder_pam.pos', which the policy does not; "
            "the nearest name is 'shoulder_pan.pos'."
        ),
    ]


def test_of_many_misfits_as_many_are_told_as_a_person_reads() -> None:
    names = tuple(f"joint_{i}" for i in range(250))
    lines = problems(replace(ROBOT, action_names=names), POLICY)
    assert len(lines) == 6 + 8 + 1
    assert lines[-1] == "The robot has 242 more actions that the policy does not have."


def test_the_time_to_compare_grows_with_the_names_alone() -> None:
    """Names made for difflib, whose time grows with the cube of their length, took seconds a piece."""
    names = tuple(f"{'ab' * 30}{i:03}{'ba' * 30}" for i in range(256))
    wanted = tuple(f"{'ba' * 30}{i:03}{'ab' * 30}" for i in range(256))
    cameras = tuple(CameraSpec(name[:100], 1, 1) for name in names[:16])
    renames = {f"{FRONT}{name[:100]}": name for name in names[-16:]}
    policy = replace(POLICY, action_names=wanted, cameras=dict.fromkeys(wanted[:16], (1, 1)))
    begun = time.thread_time()
    problems(replace(ROBOT, action_names=names, cameras=cameras), policy, renames)
    assert time.thread_time() - begun < 2


def test_a_policy_that_looks_at_no_state_gets_none() -> None:
    agreement = agree(replace(ROBOT, state_names=JOINTS[:2]), replace(POLICY, state_dim=0), {})
    assert agreement.state_names == ()


def test_every_problem_is_listed_at_once() -> None:
    robot = replace(ROBOT, action_names=JOINTS[::-1], state_names=JOINTS[:4])
    policy = replace(POLICY, cameras={TOP: (1, 1), SIDE: (1, 1), WRIST: (1, 1)})
    lines = problems(robot, policy, {"observation.images.nope": TOP})
    for word in ("another order", "6 state values", "observation.images.nope", repr(TOP), repr(SIDE)):
        assert any(word in line for line in lines), word
    assert "no camera left" in lines[4]
    assert len(lines) == 6


def test_a_robot_spec_survives_the_wire() -> None:
    message = pb.RobotSpec.FromString(ROBOT.to_proto().SerializeToString())
    assert RobotSpec.from_proto(message) == ROBOT


def test_a_robot_without_cameras_and_state_is_a_robot() -> None:
    robot = replace(ROBOT, cameras=(), state_names=(), robot_type="")
    assert RobotSpec.from_proto(robot.to_proto()) == robot


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_names": ()}, "at least one action name"),
        ({"action_names": ("a", "a")}, r"distinct, non-empty action names, found \['a', 'a'\]"),
        ({"action_names": ("a", "")}, "distinct, non-empty action names"),
        ({"state_names": ("a", "a")}, "distinct, non-empty state names"),
        ({"state_names": ("",)}, "distinct, non-empty state names"),
        ({"cameras": (CameraSpec("a", 1, 1), CameraSpec("a", 2, 2))}, "distinct, non-empty cameras"),
        ({"cameras": (CameraSpec("", 1, 1),)}, "distinct, non-empty cameras"),
        ({"cameras": (CameraSpec("a", 0, 1),)}, "found 1x0 for camera 'a'"),
        ({"cameras": (CameraSpec("a", 1, -1),)}, "found -1x1 for camera 'a'"),
        ({"cameras": (CameraSpec("a", 2**31 - 1, 2**31 - 1),)}, "1 to 8000000 pixels"),
        ({"fps": 0}, "positive, finite fps, found 0"),
        ({"fps": -1}, "positive, finite fps, found -1"),
        ({"fps": math.nan}, "positive, finite fps, found nan"),
        ({"fps": math.inf}, "positive, finite fps, found inf"),
    ],
)
def test_a_malformed_robot_spec_is_an_invalid_request(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WireError, match=message) as refused:
        RobotSpec.from_proto(replace(ROBOT, **change).to_proto())
    assert refused.value.reason is Reason.INVALID_REQUEST
