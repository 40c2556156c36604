"""What the cameras show, with each renderer that works here."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lerobot_robot_longarm_sim.plain_renderer import PlainRenderer, clip_near
from lerobot_robot_longarm_sim.renderer import RendererUnavailableError, make_renderer
from lerobot_robot_longarm_sim.world import World

GL = ("egl", "osmesa")
FRONT, WRIST = 0, 1


def draw(renderer, directory):
    """Returns frames by pose, each uint8 of shape (cameras, 240, 320, 3), and the renderer's name; skips without it."""
    path = directory / "frames.npz"
    command = [sys.executable, Path(__file__).with_name("draw_frames.py"), renderer, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return dict(np.load(path))


@pytest.fixture(scope="module", params=[*GL, "plain"])
def drawn(request, tmp_path_factory):
    return draw(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def world():
    return World()


def is_red(frame):
    """Returns where a frame is as red as the cube, and neither orange nor skin-coloured like the table."""
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    return (red > 2 * green + 30) & (red > 2 * blue + 30)


def is_blue(frame):
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    return (blue > 1.5 * green) & (blue > 2 * red)


def test_frames_are_rgb_of_the_size_asked(drawn):
    assert drawn["home"].shape == (2, 240, 320, 3)
    assert drawn["home"].dtype == np.uint8
    assert np.mean(drawn["home"][FRONT] != drawn["home"][WRIST]) > 0.3


def test_the_cube_is_red_and_the_bin_is_blue(drawn):
    """Colours in the wrong order are the classic mistake: BGR looks plausible to all but the policy."""
    frame = drawn["home"][FRONT]
    rows, columns = np.nonzero(is_red(frame))
    assert len(rows) > 50
    assert rows.mean() > 120, "the cube lies in the lower half: the image is the right way up"
    assert np.count_nonzero(is_blue(frame)) > 500
    assert columns.mean() > np.nonzero(is_blue(frame))[1].mean(), "the cube lies to the right of the bin"


def test_frames_follow_the_state(drawn):
    for camera in (FRONT, WRIST):
        assert np.mean(drawn["home"][camera] != drawn["moved"][camera]) > 0.02
    assert np.array_equal(drawn["home"], drawn["again"])


def test_the_plain_drawing_resembles_the_rendered_frame(drawn, world):
    plain = PlainRenderer(world.model, 320, 240).render(world.instant().qpos)
    for rendered, drawing in zip(drawn["home"], plain.values(), strict=True):
        assert np.abs(rendered.astype(int) - drawing.astype(int)).mean() < 30


def test_auto_takes_osmesa_when_egl_has_no_device(tmp_path):
    """MuJoCo's own contexts could not: the first one imported decides for the process."""
    draw("osmesa", tmp_path)
    drawn = draw("auto-without-egl", tmp_path)
    assert drawn["renderer"] == "osmesa"
    assert is_red(drawn["home"][FRONT]).any()


def test_a_missing_library_names_the_system_packages(world, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", missing_library)
    for name in GL:
        with pytest.raises(RendererUnavailableError, match=r"libegl1.*libosmesa6"):
            make_renderer(name, world.model, 64, 48)


def test_auto_falls_back_with_one_warning(world, monkeypatch, caplog):
    monkeypatch.setattr("ctypes.CDLL", missing_library)
    with caplog.at_level(logging.WARNING):
        renderer = make_renderer("auto", world.model, 64, 48)
    assert renderer.name == "plain"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "libegl1" in caplog.text


def missing_library(name, mode=0):
    raise OSError(f"{name}: cannot open shared object file")


def test_clip_near_keeps_what_lies_ahead():
    ahead = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, -1.0], [1.0, 1.0, -1.0]])
    assert np.array_equal(clip_near(ahead), ahead)
    assert len(clip_near(-ahead)) == 0
    straddling = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    assert clip_near(straddling)[:, 2].max() == pytest.approx(-0.01)
    assert len(clip_near(straddling)) == 4
