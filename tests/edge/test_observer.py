"""What becomes a frame, what is shared with the planner, and that nobody waits for a slow consumer."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from longarm_edge.frame_pipe import FramePipe, FramePipeError
from longarm_edge.observer import Executed, Frame, Observer, SharedView
from longarm_edge.robot import RobotReading

FPS = 30.0


def executed(tick: int, at: float, next_due: float = 1e9) -> Executed:
    return Executed(tick, at, next_due, np.zeros(3, np.float32), chunk=1, age=0.1, depth=5)


def view_of(robot, clock, ticks: list[int], seconds: float = 0.0) -> SharedView:
    observe = robot.observe

    def slow(next_step: Callable[[], int]) -> RobotReading:
        clock.time += seconds
        ticks[1] += 1
        return observe(next_step)

    robot.observe = slow
    return SharedView(robot, clock, FPS, lambda: ticks[0])


def test_planner_and_observer_share_the_capture_of_a_period(clock, robot) -> None:
    ticks = [5, 0]
    view = view_of(robot, clock, ticks)
    assert view.observe() is view.observe()
    assert ticks[1] == 1
    ticks[0] = 6
    view.observe()
    assert ticks[1] == 2


def test_before_the_first_tick_an_old_capture_is_not_taken_for_a_new_one(clock, robot) -> None:
    ticks = [0, 0]
    view = view_of(robot, clock, ticks)
    view.observe()
    clock.time += 1.0
    view.observe()
    assert ticks[1] == 2


def test_a_capture_that_ended_after_the_command_is_no_observation_of_it(clock, robot) -> None:
    view = view_of(robot, clock, [5, 0], seconds=0.02)
    reading = view.observe()
    assert view.seen_before(executed(5, at=clock.now())) is reading
    assert view.seen_before(executed(5, at=clock.now() - 0.01)) is None
    assert view.seen_before(executed(6, at=clock.now())) is None


def test_a_planner_that_is_ahead_of_the_observer_costs_no_frame(clock, robot) -> None:
    """Tick 5 is executed, and the planner wakes first: its capture for tick 6 must not hide the one of tick 5."""
    ticks = [5, 0]
    view = view_of(robot, clock, ticks)
    frames: list[Frame] = []
    observer = Observer(view, clock, [SimpleNamespace(offer=frames.append)], lambda: None)
    of_five = view.observe()
    observer.executed(executed(5, at=clock.now()))
    ticks[0] = 6
    of_six = view.observe()
    observer.executed(executed(6, at=clock.now()))
    observer._thread.start()
    observer.close()
    assert [frame.reading for frame in frames] == [of_five, of_six]


def test_a_capture_that_is_repeated_for_a_late_tick_does_not_hide_the_one_before(clock, robot) -> None:
    ticks = [5, 0]
    view = view_of(robot, clock, ticks, seconds=0.02)
    complete = view.observe()
    clock.time += 0.1
    due = clock.now() + 0.01
    view.observe()
    assert ticks[1] == 2
    assert view.seen_before(executed(5, at=due)) is complete


def test_no_capture_is_begun_that_would_reach_into_the_next_tick(clock, robot) -> None:
    ticks = [0, 0]
    frames: list[Frame] = []
    sink = SimpleNamespace(offer=frames.append)
    observer = Observer(view_of(robot, clock, ticks, seconds=0.05), clock, [sink], lambda: None)
    observer.start()
    for tick in range(3):
        observer.executed(executed(tick, at=clock.now() + 1, next_due=clock.now() + 0.03))
    observer.close()
    assert ticks[1] == 1, "only the one before tick 0, without experience"
    assert [frame.reading is not None for frame in frames] == [True, False, False]


def test_a_consumer_that_does_not_keep_up_is_never_waited_for() -> None:
    pipe = FramePipe("this", {}, capacity=3)
    pipe._command = ["sleep", "60"]
    pipe.start()
    image = {"front": np.zeros((480, 640, 3), np.uint8)}
    frame = Frame(executed(0, 0.0), RobotReading(np.zeros(3, np.float32), image), None)
    started = time.monotonic()
    taken = [pipe.offer(frame) for _ in range(50)]
    assert time.monotonic() - started < 5
    assert 3 <= sum(taken) < 10
    pipe._process.kill()
    with pytest.raises(FramePipeError, match="ended with -9"):
        pipe.close(10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the environment of a process in /proc")
def test_the_process_at_the_other_end_inherits_no_settings(monkeypatch) -> None:
    """It may start programs of others in turn, such as Rerun's viewer."""
    monkeypatch.setenv("LONGARM_EDGE_SSH__PASSWORD", "hunter2-and-more")
    pipe = FramePipe("this", {}, capacity=3)
    pipe._command = ["sleep", "60"]
    pipe.start()
    environment = Path(f"/proc/{pipe._process.pid}/environ").read_bytes()
    pipe._process.kill()
    with pytest.raises(FramePipeError):
        pipe.close(10)
    assert b"PATH=" in environment
    assert b"LONGARM_" not in environment
