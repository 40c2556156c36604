"""The size in which frames travel: never larger, never squeezed, and never one that the policy would scale again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longarm_wire.frame_sizes import Size, difference, size_to_send

VGA, BOX = (480, 640), (512, 512)


@pytest.mark.parametrize(
    ("camera", "box", "sent"),
    [
        (VGA, None, VGA),
        (VGA, (512, 512), (384, 512)),
        (VGA, (224, 224), (168, 224)),
        ((720, 1280), (224, 224), (126, 224)),
        ((640, 480), (224, 224), (224, 168)),
        ((480, 640), (224, 448), (224, 298)),
        ((448, 448), (224, 224), (224, 224)),
        # A smaller one would be scaled up: that can be done after the journey
        ((240, 320), (512, 512), (240, 320)),
        ((512, 384), (512, 512), (512, 384)),
        # LeRobot's arithmetic makes 223 of this width and not 224, and would make another size of that
        ((184, 246), (224, 224), (184, 246)),
        ((1, 5000), (224, 224), (1, 5000)),
    ],
)
def test_sizes(camera: Size, box: Size | None, sent: Size) -> None:
    assert size_to_send(camera, box) == sent


sides = st.integers(1, 4000)


@given(st.tuples(sides, sides), st.tuples(st.integers(16, 1024), st.integers(16, 1024)))
def test_what_is_sent_is_the_frame_or_what_the_policy_would_leave_as_it_is(camera: Size, box: Size) -> None:
    sent = size_to_send(camera, box)
    assert size_to_send(sent, box) == sent
    if sent != camera:
        assert all(0 < small <= side for small, side in zip(sent, camera, strict=True))
        assert sent[0] <= box[0]
        assert sent[1] <= box[1]
        assert sent[0] == box[0] or sent[1] == box[1]


@pytest.mark.parametrize(
    ("camera", "declared", "box", "said"),
    [
        (VGA, VGA, None, ""),
        (VGA, (240, 320), None, "names 320x240 for 'observation.images.top'. Frames are sent whole"),
        (VGA, (240, 424), None, "names 424x240 for 'observation.images.top', another aspect. Frames are sent whole"),
        (VGA, (240, 320), BOX, ""),
        (VGA, (256, 256), BOX, ""),
        (VGA, (720, 1280), BOX, "another aspect. The policy keeps the aspect"),
    ],
)
def test_a_camera_unlike_the_training_data_is_said(camera: Size, declared: Size, box: Size | None, said: str) -> None:
    note = difference("observation.images.top", "front", camera, declared, box)
    assert said in note
    assert bool(note) == bool(said)
    if said:
        assert f"width: {declared[1]}, height: {declared[0]} in --robot.cameras" in note
