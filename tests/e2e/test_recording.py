"""A recorded run against a real service: the dataset that LeRobot reads holds what the arm saw and was sent."""

import importlib.util
import os
import re
import signal
import urllib.request

import numpy as np
import pytest
from lerobot.configs.dataset import DatasetRecordConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from longarm_edge.metrics import Recorded, Tick
from longarm_edge.recorder import _capacity
from longarm_edge.run import Run
from longarm_edge.settings import RecordSettings
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError
from longarm_wire.specs import CameraSpec, RobotSpec
from tests.conftest import fill_up
from tests.e2e.conftest import JOINTS, until

pytestmark = pytest.mark.timeout(180)


def settings(root, **more) -> RecordSettings:
    return RecordSettings(dir=root, min_free_mb=0, **more)


def load(root) -> LeRobotDataset:
    return LeRobotDataset("local/episodes", root=root, video_backend="pyav")


def await_frames(run: Run, count: int) -> None:
    """Returns when the recorder has more than count frames. Its process has LeRobot to import first."""
    until(lambda: run.trace.unsaved_frames > count, f"{count} frames", timeout=60)


def column(dataset: LeRobotDataset, name: str) -> np.ndarray:
    return np.array([np.asarray(value) for value in dataset.hf_dataset[name]])


@pytest.mark.parametrize("video", [True, False])
def test_the_dataset_holds_what_was_seen_and_executed(edge, arm, tmp_path, video: bool) -> None:
    root = tmp_path / "episodes"
    e = edge(duration=3.0, task="pick the cube", record=settings(root, video=video))
    result = e.go()
    assert result.exit_code == exit_codes.DONE, result.reason
    written = result.summary.recorded[Recorded.WRITTEN]
    assert written > 45, result.summary.recorded
    executed = sum(count for tick, count in result.summary.ticks.items() if tick is not Tick.SKIPPED)
    assert written + result.summary.recorded[Recorded.DROPPED] == executed

    dataset = load(root)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (written, 1, 30)
    assert dataset.meta.features["action"]["names"] == list(JOINTS)
    ticks = column(dataset, "longarm.tick").ravel()
    assert (np.diff(ticks) > 0).all()
    actions, states = column(dataset, "action"), column(dataset, "observation.state")
    sent = {tick.tick: command for tick, (_, command) in zip(e.run.trace.ticks, arm.commands, strict=True)}
    assert [tuple(action) for action in actions] == [sent[tick] for tick in ticks]
    # The arm is where it was sent at once: what is seen before a tick is what the tick before commanded
    before = {tick: np.float32(sent.get(tick - 1, (0.0, 0.0, 0.0))) for tick in ticks}
    assert [tuple(state) for state in states] == [tuple(before[tick]) for tick in ticks]
    frame = dataset[written // 2]
    assert frame["task"] == "pick the cube"
    image = frame["observation.images.front"]
    assert image.shape == (3, 48, 64)
    # The camera shows the angle of the first joint as a shade of grey
    assert float(image.mean()) * 255 == pytest.approx(
        float(frame["observation.state"][0]) % 256, abs=3 if video else 0.1
    )


def test_every_frame_tells_the_chunk_and_the_age_behind_its_action(edge, tmp_path) -> None:
    root = tmp_path / "episodes"
    e = edge(duration=2.0, record=settings(root))
    e.go()
    dataset = load(root)
    chunks, ages = column(dataset, "longarm.chunk").ravel(), column(dataset, "longarm.action_age").ravel()
    known = {tick.tick: tick.age for tick in e.run.trace.ticks}
    assert ages == pytest.approx([known[tick] for tick in column(dataset, "longarm.tick").ravel()])
    assert len(set(chunks)) > 1
    assert (np.diff(chunks) >= 0).all()
    # Within a chunk the age grows with time; a fresh chunk is younger than the one before
    assert (np.diff(ages)[np.diff(chunks) == 0] > 0).all()
    assert (np.diff(ages)[np.diff(chunks) > 0] < 0.1).all()


def test_a_tick_without_an_action_is_recorded_as_such(edge, script, tmp_path) -> None:
    script.faults = {n: RuntimeError("out of memory") for n in range(3, 1000)}
    root = tmp_path / "episodes"
    edge(duration=4.0, record=settings(root)).go()
    dataset = load(root)
    chunks, ages = column(dataset, "longarm.chunk").ravel(), column(dataset, "longarm.action_age").ravel()
    idle = chunks == -1
    assert idle.any()
    assert (ages[idle] == -1).all()
    assert (ages[~idle] > 0).all()
    actions = column(dataset, "action")
    assert (actions[idle] == actions[np.flatnonzero(idle)[0] - 1]).all(), "an arm that holds, holds its last command"


def test_a_signal_saves_the_episode_and_another_run_adds_one(edge, arm, tmp_path) -> None:
    root = tmp_path / "episodes"
    lengths = []
    for resume in (False, True):

        def interrupt(run: Run) -> None:
            await_frames(run, 20)
            os.kill(os.getpid(), signal.SIGINT)

        result = edge(duration=0, record=settings(root, resume=resume)).go(interrupt)
        assert result.exit_code == exit_codes.DONE, result.reason
        lengths.append(result.summary.recorded[Recorded.WRITTEN])
    dataset = load(root)
    assert [episode["length"] for episode in dataset.meta.episodes] == lengths
    assert len(dataset) == sum(lengths)


def test_a_long_run_is_saved_as_it_goes(edge, arm, tmp_path) -> None:
    root = tmp_path / "episodes"

    def look(run: Run) -> None:
        until(lambda: run.trace.recorded_counts[Recorded.WRITTEN] >= 30, "the first episode is saved", timeout=60)
        os.kill(os.getpid(), signal.SIGINT)

    e = edge(duration=0, record=settings(root, episode_seconds=1))
    result = e.go(look)
    assert result.exit_code == exit_codes.DONE, result.reason
    recorded = result.summary.recorded
    assert recorded[Recorded.LOST] == 0
    executed = sum(count for tick, count in result.summary.ticks.items() if tick is not Tick.SKIPPED)
    assert recorded[Recorded.WRITTEN] + recorded[Recorded.DROPPED] == executed
    dataset = load(root)
    found = [episode["length"] for episode in dataset.meta.episodes]
    assert found[0] == 30
    assert sum(found) == len(dataset) == recorded[Recorded.WRITTEN]
    metric = "longarm_edge_recording_frames_total"
    assert e.run.metrics.registry.get_sample_value(metric, {"outcome": "written"}) == sum(found)


def test_an_episode_is_as_long_as_lerobots() -> None:
    assert RecordSettings().episode_seconds == DatasetRecordConfig.episode_time_s


def test_frames_wait_for_a_writer_that_saves_and_are_bounded_in_memory() -> None:
    def waiting(*cameras: CameraSpec) -> int:
        return _capacity(RobotSpec("arm", ("a",), ("a",), cameras, 30.0), 30.0)

    large = waiting(CameraSpec("front", 480, 640), CameraSpec("wrist", 480, 640))
    assert large > 4 * 30
    assert large * 2 * 480 * 640 * 3 <= 256e6
    assert waiting() == waiting(CameraSpec("front", 48, 64)) == 900
    assert waiting(CameraSpec("front", 8000, 8000)) == 2


def test_an_arm_that_fails_leaves_its_episode(edge, arm, tmp_path) -> None:
    def fail(run: Run) -> None:
        await_frames(run, 20)
        arm.write_faults = [ConnectionError("the bus is gone")] * 1000

    root = tmp_path / "episodes"
    result = edge(duration=0, record=settings(root)).go(fail)
    assert result.exit_code == exit_codes.FAILED
    assert "the bus is gone" in result.reason
    assert len(load(root)) == result.summary.recorded[Recorded.WRITTEN] > 20


def test_a_run_that_is_stopped_in_its_start_waits_for_no_recorder(edge, tmp_path, caplog) -> None:
    """It waited in silence until the recorder had imported LeRobot, and had made a dataset for nothing."""
    e = edge(server_address="127.0.0.1:9", connect_timeout=60, record=settings(tmp_path / "episodes"))

    def press(run: Run) -> None:
        until(lambda: bool(run._watchers._recorder._pipe._threads), "the recorder is started")
        os.kill(os.getpid(), signal.SIGINT)

    result = e.go(press)
    assert (result.exit_code, result.reason) == (exit_codes.INTERRUPTED, "interrupted by SIGINT")
    assert e.run._watchers._recorder._pipe._process.returncode == -signal.SIGTERM
    assert "failed" not in caplog.text
    assert not (tmp_path / "episodes").exists()


def test_a_recorder_that_dies_leaves_the_arm_alone_and_is_told(edge, arm, tmp_path) -> None:
    def kill(run: Run) -> None:
        await_frames(run, 10)
        run._watchers._recorder._pipe._process.kill()

    result = edge(duration=3.0, record=settings(tmp_path / "episodes")).go(kill)
    assert result.summary.ticks[Tick.ACTION] + result.summary.ticks[Tick.SKIPPED] == 90
    assert len(arm.commands) == result.summary.ticks[Tick.ACTION]
    assert result.summary.recorded[Recorded.DROPPED] > 10
    assert result.exit_code == exit_codes.FAILED
    assert "The recording has failed: It ended with -9" in result.reason


def test_an_episode_that_cannot_be_saved_is_lost_and_counted_as_such(edge, arm, tmp_path) -> None:
    """Frames that LeRobot's writer has taken are in a dataset only when their episode is saved."""
    root = tmp_path / "episodes"

    def block(run: Run) -> None:
        await_frames(run, 10)
        (root / "data").write_text("a file where a directory has to be")

    e = edge(duration=2.0, record=settings(root))
    result = e.go(block)
    recorded = result.summary.recorded
    assert recorded[Recorded.WRITTEN] == 0
    assert recorded[Recorded.LOST] > 30
    assert sum(recorded.values()) == result.summary.ticks[Tick.ACTION]
    assert result.exit_code == exit_codes.FAILED
    assert re.search(
        r"the episode cannot be written, and the episode is lost, \d+ frames so far. There was none before it",
        result.reason,
    )
    assert [path.name for path in root.iterdir()] == ["data"], "nothing of ours, and what was in the way"
    registry = e.run.metrics.registry
    assert registry.get_sample_value("longarm_edge_recording_unsaved_frames") == 0
    lost = registry.get_sample_value("longarm_edge_recording_frames_total", {"outcome": "lost"})
    assert lost == recorded[Recorded.LOST]


@pytest.mark.parametrize("video", [True, False])
def test_a_disk_that_is_full_costs_the_recording_and_no_tick(edge, arm, small_disk, caplog, video: bool) -> None:
    root = small_disk / "episodes"

    def fill(run: Run) -> None:
        await_frames(run, 20)
        fill_up(small_disk)

    result = edge(duration=4.0, record=settings(root, video=video)).go(fill)
    assert result.summary.ticks[Tick.ACTION] + result.summary.ticks[Tick.SKIPPED] == 120
    assert result.summary.ticks[Tick.SKIPPED] <= 3
    assert len(arm.commands) == result.summary.ticks[Tick.ACTION]
    recorded = result.summary.recorded
    assert recorded[Recorded.WRITTEN] == 0
    assert recorded[Recorded.LOST] > 20
    assert sum(recorded.values()) == result.summary.ticks[Tick.ACTION]
    assert result.exit_code == exit_codes.FAILED
    assert re.search(
        r"The recording has failed: .*the disk is full, and the episode is lost, \d+ frames", result.reason
    )
    assert len([line for line in caplog.messages if "the disk is full" in line]) == 1


def test_frames_that_cannot_be_observed_are_counted(edge, arm, tmp_path) -> None:
    seen = {}

    def blind(run: Run) -> None:
        await_frames(run, 10)
        arm.read_faults = [OSError("no frame")] * 12
        until(lambda: not arm.read_faults, "the camera is back")
        with urllib.request.urlopen(f"http://127.0.0.1:{run.endpoint.port}/metrics") as answer:
            seen["metrics"] = answer.read().decode()

    e = edge(duration=4.0, record=settings(tmp_path / "episodes"))
    assert e.run.metrics.registry.get_sample_value("longarm_edge_recording_frames_total", {"outcome": "dropped"}) == 0
    result = e.go(blind)
    assert result.summary.recorded[Recorded.DROPPED] >= 6
    assert 'longarm_edge_recording_frames_total{outcome="dropped"}' in seen["metrics"]
    ticks = column(load(tmp_path / "episodes"), "longarm.tick").ravel()
    assert (np.diff(ticks) > 1).any(), "the gap shows in the tick numbers"


def test_a_directory_that_exists_is_refused_before_the_robot_is_touched(edge, arm, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"exists.*--record.resume"):
        edge(record=settings(tmp_path))
    assert not arm.commands


def test_a_dataset_of_another_robot_is_refused_before_the_robot_is_touched(edge, arm, tmp_path) -> None:
    root = tmp_path / "episodes"
    dataset = LeRobotDataset.create(
        "local/episodes", 30, {"action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}}, root=root
    )
    for _ in range(3):
        dataset.add_frame({"action": np.zeros(2, np.float32), "task": "other"})
    dataset.save_episode()
    dataset.finalize()
    with pytest.raises(ConfigurationError, match=r"cannot add to the dataset. Expected .* but found"):
        edge(record=settings(root, resume=True)).go()
    assert not arm.commands
    assert not arm.is_connected


def test_a_disk_that_is_nearly_full_is_refused_before_the_robot_is_touched(edge, arm, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"fewer than record\.min_free_mb"):
        edge(record=RecordSettings(dir=tmp_path / "episodes", min_free_mb=1e12))
    assert not arm.commands
    assert not (tmp_path / "episodes").exists()


@pytest.mark.parametrize("name", ["take [2]", "a::b"])
def test_a_name_that_lerobot_could_not_read_again_is_refused(edge, tmp_path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="could never read a dataset there"):
        edge(record=settings(tmp_path / name))


def test_what_is_to_be_resumed_has_to_be_named(edge) -> None:
    with pytest.raises(ConfigurationError, match=r"say which with --record DIR"):
        edge(record=RecordSettings(resume=True))


def test_a_rate_that_no_dataset_has_is_refused(edge, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"whole frames per second.*29\.97"):
        edge(fps=29.97, record=settings(tmp_path / "episodes"))


@pytest.mark.parametrize(
    ("setting", "absent", "command"),
    [
        ({"record": RecordSettings(dir="somewhere")}, "datasets", "pip install -e 'edge[record]' in a checkout"),
        ({"display": "run.rrd"}, "rerun", "pip install -e 'edge[display]' in a checkout"),
    ],
)
def test_a_missing_extra_is_named_with_the_command(edge, monkeypatch, setting, absent: str, command: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(ConfigurationError, match=re.escape(command)):
        edge(**setting)
