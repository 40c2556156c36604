"""The control loop and the stop rule, on a clock that only moves when somebody sleeps."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from longarm_edge.action_queue import ActionChunk, ActionQueue, Drop
from longarm_edge.control import ControlLoop
from longarm_edge.merging import fade
from longarm_edge.metrics import EdgeMetrics, Tick
from longarm_edge.motion import Motion
from longarm_edge.settings import IdleRule, SafetySettings, StopRule
from longarm_edge.stop import Leaving
from longarm_edge.trace import Trace

FPS = 30.0


def make_loop(clock, robot, **safety) -> ControlLoop:
    return ControlLoop(
        robot=robot,
        queue=ActionQueue(max_action_age=3.0),
        # How the arm begins is looked at by itself
        motion=Motion.plan(robot, SafetySettings(**{"ease_in_speed": None, **safety})),
        trace=Trace(EdgeMetrics(CollectorRegistry())),
        clock=clock,
        fps=FPS,
        last_command=np.zeros(3, np.float32),
        after_tick=lambda: None,
        stop_reason=lambda _: None,
    )


def fill(loop: ControlLoop, clock, steps: int, *, value: float | None = None) -> None:
    values = np.arange(steps, dtype=np.float32) if value is None else np.full(steps, value, np.float32)
    loop.queue.merge(ActionChunk(0, 0, 1, 0, clock.now(), np.repeat(values[:, None], 3, axis=1)), clock.now())


def test_an_action_goes_out_at_each_tick(clock, robot) -> None:
    loop = make_loop(clock, robot)
    fill(loop, clock, 30)
    loop.run(30)
    assert [t for t, _ in robot.sent] == pytest.approx([100 + n / FPS for n in range(30)])
    assert [command[0] for _, command in robot.sent] == list(range(30))
    assert loop.trace.tick_counts == {Tick.ACTION: 30}


def test_an_arm_that_stood_eases_in_to_a_first_action_far_away(clock, robot) -> None:
    """It went there in one tick. The plan waits until the arm is there, and is followed at its own speed."""
    loop = make_loop(clock, robot, ease_in_speed=3 * FPS)
    loop.last_command = np.array([0, 90, 91], np.float32)
    fill(loop, clock, 20, value=10)
    loop.run(8)
    first = [command.tolist() for _, command in robot.sent]
    assert [command[2] for command in first[:3]] == [88, 85, 82], "the farthest joint at that speed"
    assert loop.trace.tick_counts == {Tick.EASED: 8}
    assert loop.queue.next_step == loop.next_step == 0
    loop.run(20)
    last = [command.tolist() for _, command in robot.sent]
    assert last[-1] == [10, 10, 10]
    paths = np.array([[0, 90, 91], *last])
    assert np.abs(np.diff(paths, axis=0)).max() <= 3 + 1e-4
    assert loop.trace.tick_counts[Tick.ACTION] == loop.queue.next_step == 2


def test_a_moving_arm_is_not_eased_and_one_that_stood_again_is(clock, robot) -> None:
    loop = make_loop(clock, robot, ease_in_speed=3 * FPS)
    loop.queue.merge(ActionChunk(0, 0, 1, 0, 100.0, np.array([[1] * 3, [30] * 3], np.float32)), 100.0)
    loop.run(3)
    loop.queue.merge(ActionChunk(0, 0, 2, 2, clock.now(), np.full((3, 3), 36, np.float32)), clock.now())
    loop.run(3)
    assert [command[0] for _, command in robot.sent] == [1, 30, 33, 36, 36]


def test_without_a_bound_the_arm_goes_to_the_first_action_at_once(clock, robot) -> None:
    loop = make_loop(clock, robot)
    fill(loop, clock, 3, value=50)
    loop.run(1)
    assert [command.tolist() for _, command in robot.sent] == [[50] * 3]


def test_what_drives_waits_until_the_arm_is_eased_in(clock, robot) -> None:
    loop = make_loop(clock, robot, ease_in_speed=3 * FPS, velocity_actions=[robot.spec.action_names[2]])
    loop.queue.merge(ActionChunk(0, 0, 1, 0, 100.0, np.array([[7, 0, 0.5]] * 5, np.float32)), 100.0)
    loop.run(4)
    assert [command.tolist() for _, command in robot.sent] == [[3, 0, 0], [6, 0, 0], [7, 0, 0.5], [7, 0, 0.5]]


def test_easing_in_keeps_to_the_bounds(clock, robot) -> None:
    name = robot.spec.action_names[0]
    loop = make_loop(clock, robot, ease_in_speed=3 * FPS, joint_limits={name: (-5, 5)}, max_step=1)
    fill(loop, clock, 30, value=50)
    loop.run(60)
    sent = np.array([command for _, command in robot.sent])
    assert sent[:, 0].max() == 5
    assert np.abs(np.diff(sent, axis=0)).max() <= 1
    assert sent[-1, 1] > 30, "and comes there"


def test_an_arm_that_is_eased_in_heeds_the_newest_chunk(clock, robot) -> None:
    loop = make_loop(clock, robot, ease_in_speed=3 * FPS)
    loop.queue.merging = fade(3.0)
    fill(loop, clock, 50, value=100)
    loop.run(5)
    loop.queue.merge(ActionChunk(0, 0, 2, 0, clock.now(), np.full((50, 3), -60, np.float32)), clock.now())
    loop.run(60)
    path = np.array([0, *(command[0] for _, command in robot.sent)])
    assert path.max() == 15
    assert path[-1] == -60
    assert np.abs(np.diff(path)).max() <= 3 + 1e-4


def test_an_arm_that_is_not_where_it_was_sent_is_eased_in_from_where_it_is_seen(clock, robot) -> None:
    """Its bus was silent behind a dead camera, or somebody moved it: eased in from its last command, it leapt there."""
    loop = make_loop(clock, robot, ease_in_speed=3 * FPS)
    loop.last_command = np.array([50, 50, 0], np.float32)
    seen = np.array([-20, -20, 30], np.float32)  # the gripper squeezes something
    actions = np.array([[-19, -30, 0], [-18, -31, 0]], np.float32)
    loop.queue.merge(ActionChunk(0, 0, 1, 0, clock.now(), actions, None, seen), clock.now())
    loop.run(6)
    sent = [command.tolist() for _, command in robot.sent]
    assert sent[0] == pytest.approx([-19.7, -23, 0], abs=0.01)
    assert [command[1] for command in sent] == pytest.approx([-23, -26, -29, -30, -31], abs=0.01)
    assert {command[2] for command in sent} == {0}


def test_max_step_is_from_where_an_arm_that_stood_is_seen(clock, robot) -> None:
    loop = make_loop(clock, robot, max_step=2)
    loop.last_command = np.array([50, 50, 0], np.float32)
    seen = np.array([-20, -20, 0], np.float32)
    loop.queue.merge(ActionChunk(0, 0, 1, 0, clock.now(), np.full((3, 3), -19, np.float32), None, seen), clock.now())
    loop.run(2)
    assert [command.tolist() for _, command in robot.sent] == [[-19, -19, -2], [-19, -19, -4]]


def test_a_joint_that_nobody_measures_is_not_eased_in_from_where_it_was_sent_in_vain(clock, robot) -> None:
    """Behind a silent bus it was sent 10 ahead. Eased in from there, it leapt by most of that."""
    loop = make_loop(clock, robot, ease_in_speed=3 * FPS)
    fill(loop, clock, 11)
    loop.run(12)
    loop.stand_at(np.array([np.nan, 0, 0], np.float32))
    loop.queue.merge(ActionChunk(0, 0, 2, 11, clock.now(), np.array([[1, 1, 1], [2, 2, 2]], np.float32)), clock.now())
    loop.run(2)
    assert [command.tolist() for _, command in robot.sent][11:] == [[1, 1, 1], [2, 2, 2]]


def test_a_joint_that_is_found_outside_its_limits_is_eased_in_to_them(clock, robot) -> None:
    loop = make_loop(clock, robot, ease_in_speed=3 * FPS, joint_limits={robot.spec.action_names[0]: (-45, 45)})
    loop.last_command = np.array([110, 0, 0], np.float32)
    fill(loop, clock, 50, value=0)
    loop.run(3)
    assert [command[0] for _, command in robot.sent] == [107, 104, 101]


def test_one_late_wake_up_does_not_delay_the_next_tick(clock, robot) -> None:
    clock.oversleep = [0.0, 0.02]
    loop = make_loop(clock, robot)
    fill(loop, clock, 5)
    loop.run(5)
    assert [t - 100 for t, _ in robot.sent] == pytest.approx([0, 1 / FPS + 0.02, 2 / FPS, 3 / FPS, 4 / FPS])
    assert max(t.lateness for t in loop.trace.ticks) == pytest.approx(0.02)


def test_after_a_long_sleep_ticks_are_given_up_and_counted_rather_than_run_in_a_burst(clock, robot) -> None:
    clock.oversleep = [0.0, 0.5]
    loop = make_loop(clock, robot)
    fill(loop, clock, 50)
    loop.run(20)
    # Tick 1 wakes at 0.533 s, in the period of tick 16: ticks 2 to 15 are over. The plan waited: the arm does not leap
    assert [int(command[0]) for _, command in robot.sent] == [0, 1, 2, 3, 4, 5]
    assert [record.tick for record in loop.trace.ticks] == [0, 1, 16, 17, 18, 19]
    assert loop.trace.tick_counts[Tick.SKIPPED] == 14


def test_what_is_seen_belongs_to_the_tick_to_come_whether_the_arm_moves_or_not(clock, robot) -> None:
    clock.oversleep = [0.0, 0.0, 0.0, 0.1]
    loop = make_loop(clock, robot)
    fill(loop, clock, 2)
    seen = []
    loop.after_tick = lambda: seen.append(loop.next_tick)
    loop.run(8)
    assert seen == [1, 2, 3, 6, 7, 8]


def test_what_is_seen_while_an_action_waits_for_the_bus_belongs_to_its_step(clock, robot, monkeypatch) -> None:
    """It shows the arm before that action."""
    loop = make_loop(clock, robot)
    fill(loop, clock, 2)
    seen = []
    send = robot.send

    def wait_and_send(command: np.ndarray, sent: Callable[[], None]) -> None:
        seen.append(loop.next_step)
        send(command, sent)
        seen.append(loop.next_step)

    monkeypatch.setattr(robot, "send", wait_and_send)
    loop.run(3)
    assert seen == [0, 1, 1, 2]


@pytest.mark.parametrize(("rule", "expected"), [(IdleRule.HOLD, []), (IdleRule.REPEAT_LAST, [7, 7])])
def test_a_tick_without_an_action_follows_the_idle_rule(clock, robot, rule: IdleRule, expected: list[float]) -> None:
    loop = make_loop(clock, robot, when_idle=rule)
    fill(loop, clock, 1, value=7)
    loop.run(3)
    assert [command[0] for _, command in robot.sent[1:]] == expected
    assert loop.trace.tick_counts == {Tick.ACTION: 1, Tick.IDLE: 2}


@pytest.mark.parametrize("rule", list(IdleRule))
def test_at_a_tick_without_an_action_velocities_go_to_zero_and_joints_stay(clock, robot, rule: IdleRule) -> None:
    """B25: stock sends nothing, which a velocity base takes as «go on». A 0 for its joints would throw an arm about."""
    robot.spec = replace(robot.spec, action_names=("lift.pos", "x.vel", "theta.vel"))
    loop = make_loop(clock, robot, when_idle=rule, pose_names={"lift.pos": "elbow.pos"}, max_step=10)
    fill(loop, clock, 1, value=7)
    loop.run(3)
    assert [command.tolist() for _, command in robot.sent] == [[7, 7, 7], [7, 0, 0], [7, 0, 0]]


def test_where_it_is_not_known_where_a_joint_stands_the_first_command_is_the_policys(clock, robot) -> None:
    """Taken for 0, an arm at 90 that the policy sends to 91 would be sent to 2 by a max_step of 2."""
    robot.spec = replace(robot.spec, action_names=("lift", "elbow.pos", "gripper.pos"))
    loop = make_loop(clock, robot, max_step=2.0, pose_names={"lift": None})
    loop.last_command = np.array([np.nan, 90, 90], np.float32)
    values = np.array([[91, 91, 95], [99, 91, 95]], np.float32)
    loop.queue.merge(ActionChunk(0, 0, 1, 0, clock.now(), values), clock.now())
    loop.run(2)
    assert [command.tolist() for _, command in robot.sent] == [[91, 91, 92], [93, 91, 94]]


def test_old_actions_are_not_executed(clock, robot) -> None:
    loop = make_loop(clock, robot)
    fill(loop, clock, 5)
    clock.time += 3.5
    loop.run(5)
    assert robot.sent == []
    assert loop.trace.tick_counts == {Tick.STALE: 1, Tick.IDLE: 4}, "found too old, and gone"


def test_a_laptop_that_was_closed_executes_nothing_from_before(clock, robot) -> None:
    """The monotonic clock stands still meanwhile: actions hours old would look fresh, and so would a late reply."""
    loop = make_loop(clock, robot)
    fill(loop, clock, 9)
    before = loop.queue.epoch
    loop.after_tick = lambda: setattr(clock, "asleep", 3600.0 if len(robot.sent) == 3 else 0.0)
    loop.run(6)
    assert [command[0] for _, command in robot.sent] == [0, 1, 2]
    assert loop.queue.drops[Drop.EXPIRED] == 6
    assert loop.queue.merge(ActionChunk(before, 0, 2, 3, clock.now(), np.zeros((5, 3))), clock.now()) is Drop.FOREIGN


def test_a_jump_is_walked_in_steps(clock, robot) -> None:
    loop = make_loop(clock, robot, max_step=4.0)
    fill(loop, clock, 6, value=10)
    loop.run(6)
    assert [command[0] for _, command in robot.sent] == [4, 8, 10, 10, 10, 10]
    assert loop.trace.tick_counts == {Tick.CLAMPED: 2, Tick.ACTION: 4}


def test_the_loop_ends_with_the_reason(clock, robot) -> None:
    loop = make_loop(clock, robot)
    fill(loop, clock, 50)
    loop.stop_reason = lambda now: "enough" if now > 100.2 else None
    assert loop.run() == "enough"
    assert len(robot.sent) == 7


def test_metrics_tell_what_happened(clock, robot) -> None:
    loop = make_loop(clock, robot)
    fill(loop, clock, 4)
    loop.run(6)
    registry = loop.trace.metrics.registry
    value = registry.get_sample_value
    assert value("longarm_edge_control_ticks_total", {"outcome": "action"}) == 4
    assert value("longarm_edge_control_ticks_total", {"outcome": "idle"}) == 2
    assert value("longarm_edge_control_ticks_total", {"outcome": "clamped"}) == 0, "every outcome exports 0"
    assert value("longarm_edge_tick_lateness_seconds_count") == 6
    assert value("longarm_edge_action_age_seconds_count") == 4


def test_a_reason_to_stop_does_not_wait_for_a_tick_that_is_far_away(clock, robot) -> None:
    """At 0.3 ticks a second one Ctrl-C was said to have met a call to the robot that hangs."""
    loop = replace(make_loop(clock, robot), fps=0.3)
    fill(loop, clock, 5)
    loop.stop_reason = lambda now: "enough" if now > 101 else None
    assert loop.run() == "enough"
    assert clock.time < 102
    assert len(robot.sent) == 1


class TestStopRule:
    def leave(
        self, robot, clock, *, at_once=lambda: False, last: float = 30, heard: bool = True, fps: float = FPS, **safety
    ) -> str | None:
        robot.stands = robot.stands or last
        return Leaving(
            robot=robot,
            # How the arm begins is looked at by itself
            motion=Motion.plan(robot, SafetySettings(**{"ease_in_speed": None, **safety})),
            start_pose=np.zeros(3, np.float32),
            last_command=np.full(3, last, np.float32),
            fps=fps,
            clock=clock,
            at_once=at_once,
            heard=heard,
        )()

    def test_hold_keeps_torque(self, robot, clock) -> None:
        """B24: stock lets go of the torque at the first exception, and the arm drops."""
        assert self.leave(robot, clock, on_stop=StopRule.HOLD) is None
        assert robot.torque is True
        assert not robot.connected
        assert robot.sent == []

    def test_release_lets_go_of_torque(self, robot, clock) -> None:
        assert self.leave(robot, clock, on_stop=StopRule.RELEASE) is None
        assert robot.torque is False

    def test_rest_moves_slowly_to_the_start_pose(self, robot, clock) -> None:
        assert self.leave(robot, clock, on_stop=StopRule.REST, rest_seconds=2.0) is None
        path = [command[0] for _, command in robot.sent]
        assert path[0] == 30
        assert path[-1] == 0
        assert all(0 <= before - after < 1 for before, after in itertools.pairwise(path))
        assert robot.sent[-1][0] - robot.sent[0][0] == pytest.approx(2.0, abs=2 / FPS)
        assert robot.torque is None, "at rest the robot's own configuration decides"

    @pytest.mark.parametrize("fps", [0.2, 1.0, 5.0])
    def test_the_way_back_of_a_run_at_few_ticks_a_second_is_smooth_and_no_faster(self, robot, clock, fps) -> None:
        """At one tick a second an arm was sent home in leaps of 30 degrees."""
        assert self.leave(robot, clock, on_stop=StopRule.REST, rest_seconds=2.0, fps=fps) is None
        path = [command[0] for _, command in robot.sent]
        assert max(before - after for before, after in itertools.pairwise(path)) < 1
        assert robot.sent[-1][0] - robot.sent[0][0] == pytest.approx(2.0, abs=2 / FPS)
        robot.sent.clear()
        robot.stands = 30.0
        bound = 3.0 / fps  # 3 a second, so that it takes 10
        assert self.leave(robot, clock, on_stop=StopRule.REST, max_step=bound, fps=fps) is None
        assert robot.sent[-1][1].tolist() == [0, 0, 0]
        assert robot.sent[-1][0] - robot.sent[0][0] >= 10 - 2 / FPS

    def test_a_command_that_hung_on_the_way_back_is_not_made_up_for_in_a_burst(self, robot, clock) -> None:
        send = robot.send

        def slowly(command: np.ndarray, sent: Callable[[], None] = lambda: None) -> None:
            clock.time += 1.0 if len(robot.sent) == 20 else 0.0
            send(command, sent)

        robot.send = slowly
        assert self.leave(robot, clock, on_stop=StopRule.REST, rest_seconds=2.0) is None
        gaps = [after - before for (before, _), (after, _) in itertools.pairwise(robot.sent)]
        assert sum(gap < 0.9 / FPS for gap in gaps) <= 1

    def test_the_way_back_goes_through_the_guard(self, robot, clock) -> None:
        """max_step and joint_limits are what a person relies on, whoever moves the arm."""
        limits = {"elbow.pos": (5.0, 90.0)}
        assert self.leave(robot, clock, on_stop=StopRule.REST, max_step=0.25, joint_limits=limits) is None
        steps = [(before - after).max() for (_, before), (_, after) in itertools.pairwise(robot.sent)]
        assert max(steps) == 0.25
        assert robot.sent[-1][1].tolist() == [0, 5, 0], "slower than rest_seconds, and not past a limit"
        assert robot.torque is None

    def test_an_arm_that_is_blocked_on_the_way_back_holds_and_pushes_no_further(self, robot, clock) -> None:
        """Torque went off in the air, with exit code 0. What it is sent ahead of itself it springs once it is free."""
        robot.blocked = {"elbow.pos": 22.0}
        problem = self.leave(robot, clock, on_stop=StopRule.REST)
        assert "elbow.pos stands at 22 and began at 0 (safety.rest_tolerance=5)" in problem
        assert robot.torque is True
        assert robot.sent[-1][1][[0, 2]].tolist() == [0, 0], "what is not blocked goes home"
        assert 22 - 5 - 1 < robot.sent[-1][1][1] <= 22 - 5
        assert clock.now() < 110

    def test_an_arm_that_comes_late_is_waited_for(self, robot, clock) -> None:
        """As one whose driver bounds each command by where the arm stands (max_relative_target)."""
        robot.blocked = {"elbow.pos": 22.0}
        robot.send = lambda command, sent=lambda: None, send=robot.send: (
            send(command, sent),
            robot.blocked.update({"elbow.pos": max(command[1], robot.blocked["elbow.pos"] - 0.1)}),
        )
        assert self.leave(robot, clock, on_stop=StopRule.REST) is None
        assert robot.read_state()[1] <= 5

    def test_the_way_back_begins_where_the_arm_stands_not_where_it_was_sent(self, robot, clock) -> None:
        """A silent bus loses commands: the first that gets through again would be far from the arm."""
        robot.stands = 90.0
        assert self.leave(robot, clock, on_stop=StopRule.REST, heard=False) is None
        assert robot.sent[0][1].tolist() == [90, 90, 90]

    def test_one_wrong_look_moves_nothing(self, robot, clock) -> None:
        """The way began there, 200 degrees away, whatever max_step said."""
        looks = iter([np.full(3, -170, np.float32)])
        robot.read_state = lambda look=robot.read_state: next(looks, None) if len(robot.sent) in (0, 25) else look()
        robot.read_state = lambda look=robot.read_state: found if (found := look()) is not None else np.full(3, 30.0)
        assert self.leave(robot, clock, on_stop=StopRule.REST, max_step=2, heard=False) is None
        assert robot.sent[0][1].tolist() == [30, 30, 30]

    def test_a_joint_that_carries_something_is_taken_home_all_the_same(self, robot, clock) -> None:
        """It stands below its command all the time: taken for blocked it was lowered, twice, and called held."""
        look = robot.read_state
        robot.read_state = lambda: look() - np.array([0, 4.5, 0], np.float32)
        assert self.leave(robot, clock, on_stop=StopRule.REST) is None
        assert robot.sent[0][1].tolist() == [30, 30, 30]

    def test_an_arm_that_is_held_on_the_way_does_not_spring_when_it_is_let_go(self, robot, clock) -> None:
        send = robot.send

        def held(command, sent=lambda: None) -> None:
            send(command, sent)
            if 20 < len(robot.sent) < 80:
                robot.blocked.setdefault("elbow.pos", float(command[1]))
            else:
                robot.blocked.clear()

        robot.send = held
        assert self.leave(robot, clock, on_stop=StopRule.REST) is None
        elbow = np.array([command[1] for _, command in robot.sent])
        assert np.abs(np.diff(elbow)).max() < 1
        assert elbow[20] - elbow[79] < 5 + 1

    def test_a_joint_that_was_pressed_against_something_does_not_spring_to_the_other_side(self, robot, clock) -> None:
        """It might be as far behind as it had been pressed, to either side."""
        robot.blocked = {"elbow.pos": 50.0}
        assert "elbow.pos stands at 50" in self.leave(robot, clock, on_stop=StopRule.REST, last=80)
        assert 50 - 5 - 2 < robot.sent[-1][1][1] <= 50

    def test_wheels_behind_a_silent_bus_are_said_to_drive(self, robot, clock) -> None:
        """It takes the word to stop, loses it, and the run ended with 0."""
        robot.spec = replace(robot.spec, action_names=("x.vel", "y.vel", "theta.vel"))
        robot.read_state = lambda: (_ for _ in ()).throw(ConnectionError("no status packet"))
        assert "may not have heard it: no status packet" in self.leave(robot, clock)

    def test_nothing_is_sent_on_the_way_back_while_the_arm_cannot_be_seen(self, robot, clock) -> None:
        look = robot.read_state
        robot.read_state = lambda: (
            look() if len(robot.sent) < 20 else (_ for _ in ()).throw(ConnectionError("no answer"))
        )
        problem = self.leave(robot, clock, on_stop=StopRule.REST)
        assert "it stopped on the way to the start pose and holds: no answer" in problem
        assert len(robot.sent) == 20
        assert robot.torque is True

    def test_an_arm_that_cannot_reach_the_start_pose_holds(self, robot, clock) -> None:
        problem = self.leave(robot, clock, on_stop=StopRule.REST, max_step=0.01)
        assert "did not reach the start pose" in problem
        assert robot.torque is True

    def test_a_way_back_that_fails_ends_with_the_torque_on(self, robot, clock) -> None:
        """The driver's own default would take it off, halfway up in the air."""
        robot.fails = True
        problem = self.leave(robot, clock, on_stop=StopRule.REST)
        assert "not left as wanted (on_stop=rest)" in problem
        assert "the bus is gone" in problem
        assert robot.torque is True
        assert not robot.connected

    def test_a_way_back_cannot_be_made_as_short_as_a_jump(self) -> None:
        with pytest.raises(ValueError, match="greater than or equal to 2"):
            SafetySettings(on_stop=StopRule.REST, rest_seconds=0.1)

    def test_a_second_wish_ends_the_way_back_and_holds(self, robot, clock) -> None:
        problem = self.leave(robot, clock, on_stop=StopRule.REST, at_once=lambda: len(robot.sent) >= 10)
        assert "it was stopped on the way to the start pose and holds" in problem
        assert len(robot.sent) == 10
        assert robot.torque is True

    @pytest.mark.parametrize("rule", list(StopRule))
    def test_what_drives_is_stopped_at_once_by_every_rule(self, robot, clock, rule: StopRule) -> None:
        robot.spec = replace(robot.spec, action_names=("elbow.pos", "x.vel", "theta.vel"))
        assert self.leave(robot, clock, on_stop=rule, max_step=1.0) is None
        assert robot.sent[0][1].tolist() == [30, 0, 0]
        assert all(command[1:].tolist() == [0, 0] for _, command in robot.sent)
        assert robot.sent[-1][1][0] == (0 if rule is StopRule.REST else 30)

    def test_what_drives_is_told_to_stop_more_than_once_if_need_be(self, robot, clock) -> None:
        robot.spec = replace(robot.spec, action_names=("x.vel", "y.vel", "theta.vel"))
        robot.failures = 2
        assert self.leave(robot, clock) is None
        assert robot.sent[-1][1].tolist() == [0, 0, 0]
        robot.failures = 3
        assert "not told to stop driving" in self.leave(robot, clock)

    def test_a_command_that_hung_is_not_the_last_word_to_what_drives(self, robot, clock, monkeypatch) -> None:
        """One to drive, answered late, came after the word to stop."""
        robot.spec = replace(robot.spec, action_names=("x.vel", "y.vel", "theta.vel"))
        still_hangs = [True, False]
        monkeypatch.setattr(robot, "take_over", lambda _: not still_hangs.pop(0))
        assert self.leave(robot, clock) is None
        # Each time once more, when it is known to listen
        assert [command.tolist() for _, command in robot.sent] == [[0, 0, 0]] * 4

    def test_while_a_command_hangs_the_arm_does_not_set_out(self, robot, clock, monkeypatch) -> None:
        """It would be thrown back when that command gets through."""
        monkeypatch.setattr(robot, "take_over", lambda _: False)
        assert "a command hangs on its way" in self.leave(robot, clock, on_stop=StopRule.REST)
        assert robot.sent == []
        assert robot.torque is True

    def test_joints_are_sent_nowhere_when_it_is_not_known_where_they_stand(self, robot, clock) -> None:
        """Not to NaN either."""
        robot.spec = replace(robot.spec, action_names=("elbow.pos", "x.vel", "theta.vel"))
        assert "not told to stop driving" in self.leave(robot, clock, last=np.nan)
        assert robot.sent == []
        assert robot.torque is True
