"""The other pure parts: schedule, replanning, filter, guard and link, each with time passed in."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longarm_edge.action_queue import QueuedAction
from longarm_edge.backoff import Backoff
from longarm_edge.guard import Guard, RejectedChunkError, check_chunk
from longarm_edge.link import HEALTHY, Link, LinkState
from longarm_edge.observation_filter import ObservationFilter, look_at
from longarm_edge.pace import Pace
from longarm_edge.repeats import Repeats
from longarm_edge.replan import Replan, Replanner, RoundTrips
from longarm_edge.rtc import RealTimeChunking
from longarm_edge.schedule import MonotonicClock, Schedule
from longarm_wire.rtc import RtcConfig


class TestSchedule:
    def test_lateness_never_accumulates(self) -> None:
        schedule = Schedule(start=50.0, fps=30)
        assert [schedule.due(n) for n in (0, 1, 30)] == pytest.approx([50.0, 50 + 1 / 30, 51.0])

    def test_a_late_tick_is_followed_by_the_next_one(self) -> None:
        assert Schedule(0.0, 30).after(4, now=4.9 / 30) == 5

    def test_ticks_whose_period_is_over_are_given_up(self) -> None:
        """After a second asleep the arm must not get thirty commands in a burst."""
        assert Schedule(0.0, 30).after(4, now=34.5 / 30) == 34

    @given(st.integers(0, 10**7), st.floats(1, 1000), st.floats(0, 1e6), st.floats(0, 0.999))
    def test_the_next_tick_is_always_ahead(self, tick: int, fps: float, start: float, late: float) -> None:
        schedule = Schedule(start, fps)
        assert schedule.after(tick, schedule.due(tick) + late / fps) in (tick + 1, tick + 1)


def trips(*seconds: float) -> RoundTrips:
    found = RoundTrips()
    for value in seconds:
        found.add(value)
    return found


def test_the_clock_tells_a_suspension_once(monkeypatch) -> None:
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    asleep = [100.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _: time.monotonic() + asleep[0])
    clock = MonotonicClock()
    assert clock.suspended() == pytest.approx(0, abs=0.1)
    asleep[0] += 3600
    assert clock.suspended() == pytest.approx(3600, abs=0.1)
    assert clock.suspended() == pytest.approx(0, abs=0.1)


class TestReplan:
    def test_auto_asks_again_after_a_short_rest(self) -> None:
        replanner = Replanner(Replan.AUTO, 0.5, 30)
        assert not replanner.wants(50, 50, playback_left=1.6, trips=trips(0.2), rested=1.9 / 30)
        assert replanner.wants(50, 50, playback_left=1.6, trips=trips(0.2), rested=2 / 30)

    def test_auto_asks_at_once_when_the_queue_lasts_no_longer_than_a_reply_takes(self) -> None:
        """The last chunk may have come with most of its actions late."""
        replanner = Replanner(Replan.AUTO, 0.5, 30)
        assert replanner.wants(9, 50, playback_left=0.3, trips=trips(0.2), rested=0.01)

    def test_auto_learns_the_link_at_once(self) -> None:
        replanner = Replanner(Replan.AUTO, 0.5, 30)
        assert replanner.wants(50, 50, playback_left=1.6, trips=trips(), rested=0.0)

    def test_threshold_is_lerobots(self) -> None:
        replanner = Replanner(Replan.THRESHOLD, 0.5, 30)
        assert not replanner.wants(26, 50, playback_left=0.9, trips=trips(0.1), rested=9.0)
        assert replanner.wants(25, 50, playback_left=0.9, trips=trips(0.1), rested=0.1)

    def test_threshold_asks_earlier_where_the_link_needs_it(self) -> None:
        replanner = Replanner(Replan.THRESHOLD, 0.1, 30)
        assert replanner.wants(25, 50, playback_left=0.8, trips=trips(1.0), rested=1.0)

    def test_continuous_always_asks(self) -> None:
        replanner = Replanner(Replan.CONTINUOUS, 0.5, 30)
        assert replanner.wants(50, 50, playback_left=1.6, trips=trips(0.01), rested=0.01)

    def test_what_follows_the_old_chunk_is_asked_for_while_enough_is_left_of_it(self) -> None:
        replanner = Replanner(Replan.AUTO, 0.5, 30, least_depth=10)
        assert not replanner.wants(11, 50, playback_left=0.37, trips=trips(0.05), rested=0.06)
        assert replanner.wants(10, 50, playback_left=0.33, trips=trips(0.05), rested=0.06)
        assert not replanner.urgent(playback_left=0.33, p95=0.05), "an arm that stands still may be filtered"

    @pytest.mark.parametrize("mode", Replan)
    def test_an_answer_that_takes_as_long_as_a_chunk_lasts_is_asked_for_when_the_queue_is_empty(
        self, mode: Replan
    ) -> None:
        """Asked earlier, it would be played out on arrival."""
        replanner = Replanner(mode, 0.5, 30, least_depth=10)
        assert not replanner.wants(1, 30, playback_left=1 / 30, trips=trips(1.0), rested=9.0)
        assert replanner.wants(0, 30, playback_left=0.0, trips=trips(1.0), rested=0.0)
        assert replanner.wants(1, 30, playback_left=1 / 30, trips=trips(0.99), rested=0.0)

    def test_some_slow_answers_do_not_make_it_wait(self) -> None:
        replanner = Replanner(Replan.CONTINUOUS, 0.5, 30)
        some = trips(*[0.1] * 20, 3.0, 0.1, 3.0, 0.1, 3.0, 3.0)
        assert replanner.wants(30, 30, playback_left=1.0, trips=some, rested=0.0)
        some.add(3.0)
        assert not replanner.wants(30, 30, playback_left=1.0, trips=some, rested=0.0), "five of nine: it became slow"

    def test_what_slow_answers_take_is_not_told_by_one(self) -> None:
        """A bus that hung once must not make the policy look slow, nor a person look for a faster GPU."""
        trips = RoundTrips()
        assert trips.slow_ones() is None
        for seconds in (0.1, 0.1, 0.8, 0.1, 0.1):
            trips.add(seconds)
        assert trips.slow_ones() == pytest.approx(0.1)
        trips.add(0.7)
        assert trips.slow_ones() == pytest.approx(0.7)

    def test_p95_is_of_recent_round_trips(self) -> None:
        trips = RoundTrips(window=20)
        assert trips.p95() is None
        trips.add(9.0)
        for _ in range(20):
            trips.add(0.1)
        assert trips.p95() == pytest.approx(0.1)
        trips.add(0.3)
        trips.add(0.4)
        assert trips.p95() == pytest.approx(0.4)

    def test_typical_is_the_median_of_the_last_few(self) -> None:
        assert RoundTrips().typical() is None
        assert trips(0.4).typical() == 0.4
        assert trips(*[5.0] * 9, *[0.1] * 5, *[5.0] * 4).typical() == 0.1


class TestPace:
    @staticmethod
    def pace(typical: float, slowest: float = 0.0, *, steps: int = 30, limit: int = 0, age: float = 3.0) -> Pace:
        return Pace(typical, slowest or typical, steps, limit, 30, age)

    def test_an_arm_moves_without_a_pause_if_a_chunk_lasts_for_two_answers(self) -> None:
        assert not self.pace(0.5).slow
        assert self.pace(0.51).slow
        assert self.pace(0.1, 0.95).slow, "now and then"
        assert not self.pace(0.1, 0.85).slow

    def test_a_chunk_lasts_no_longer_than_its_actions_may_be_executed(self) -> None:
        assert not self.pace(0.25, age=0.5).slow
        assert self.pace(0.26, age=0.5).slow
        assert not self.pace(0.5, age=0.5).slow, "nothing of it is played at all"

    def test_the_advice_has_the_numbers_and_what_binds(self) -> None:
        short = self.pace(1.2, 1.3, steps=15, limit=15).advice()
        assert "takes 1.20 s, and 1.30 s if it is slow; the 15 actions of a chunk last 0.50 s" in short
        assert "more actions than actions_per_chunk=15, or a policy with longer chunks" in short
        assert "max_action_age" not in short
        assert "actions_per_chunk" not in self.pace(1.2).advice()
        cut = self.pace(0.4, age=0.6, steps=90).advice()
        assert "safety.max_action_age=0.6 s are not executed" in cut
        assert cut.endswith("one nearer by, or a larger safety.max_action_age")
        assert "actions of a chunk last" not in cut
        both = self.pace(1.2, age=1.5).advice()
        assert "actions of a chunk last" in both
        assert "safety.max_action_age=1.5 s" in both


class TestRealTimeChunking:
    @staticmethod
    def coming(steps: int, model: bool = True) -> list[QueuedAction]:
        values = np.arange(steps * 3, dtype=np.float32).reshape(steps, 3)
        return [QueuedAction(7 + i, v, 0.0, 0.0, 1, -v[:2] if model else None) for i, v in enumerate(values)]

    def test_sends_what_is_left_up_to_the_horizon_in_both_spaces(self) -> None:
        prefix = RealTimeChunking(RtcConfig(execution_horizon=4), 30).prefix(self.coming(6), 0.05)
        assert prefix is not None
        assert prefix.robot_actions.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
        assert prefix.model_actions.tolist() == [[0, -1], [-3, -4], [-6, -7], [-9, -10]]
        assert len(RealTimeChunking(RtcConfig(), 30).prefix(self.coming(2), 0.05).robot_actions) == 2

    @pytest.mark.parametrize(("round_trip", "ticks"), [(None, 0), (0.0, 0), (0.02, 1), (0.05, 2), (0.21, 7)])
    def test_expects_whole_ticks_and_rather_too_many(self, round_trip: float | None, ticks: int) -> None:
        prefix = RealTimeChunking(RtcConfig(), 30).prefix(self.coming(9), round_trip)
        assert prefix is not None
        assert prefix.delay_ticks == ticks

    def test_expects_no_more_to_be_executed_than_there_is(self) -> None:
        """Once all that is coming is executed the arm stands, and the plan with it."""
        prefix = RealTimeChunking(RtcConfig(), 30).prefix(self.coming(5), 1.0)
        assert prefix is not None
        assert prefix.delay_ticks == 5

    def test_the_first_chunk_follows_nothing(self) -> None:
        """A cold start must not make the arm jump: no delay is made up, and nothing is guided."""
        assert RealTimeChunking(RtcConfig(), 30).prefix([], None) is None
        assert RealTimeChunking(RtcConfig(), 30).prefix([], 0.2) is None

    def test_actions_that_the_policy_did_not_make_are_not_followed(self) -> None:
        assert RealTimeChunking(RtcConfig(), 30).prefix(self.coming(9, model=False), 0.05) is None

    def test_a_delay_beyond_the_horizon_is_said_once_with_what_to_set(self, caplog: pytest.LogCaptureFixture) -> None:
        """Beyond its range LeRobot's real-time chunking lets the arm oscillate, without a word."""
        rtc = RealTimeChunking(RtcConfig(execution_horizon=10), 30)
        rtc.prefix(self.coming(9), 0.25)
        assert not caplog.records
        for _ in range(3):
            rtc.prefix(self.coming(20), 0.5)
        (record,) = caplog.records
        assert "rtc.execution_horizon to 30" in record.getMessage()


class TestObservationFilter:
    still = look_at(np.zeros(6, np.float32), {"front": np.full((480, 640, 3), 90, np.uint8)})

    def test_the_first_observation_goes(self) -> None:
        assert not ObservationFilter(1.0, 8.0).is_redundant(self.still)

    def test_a_still_scene_is_redundant_once_answered(self) -> None:
        """B1: what was lost or failed never counts as answered."""
        observation_filter = ObservationFilter(1.0, 8.0)
        assert not observation_filter.is_redundant(self.still)
        assert not observation_filter.is_redundant(self.still)
        observation_filter.answered(self.still)
        assert observation_filter.is_redundant(self.still)
        observation_filter.forget()
        assert not observation_filter.is_redundant(self.still)

    def test_a_joint_that_moved_goes(self) -> None:
        observation_filter = ObservationFilter(1.0, 8.0)
        observation_filter.answered(self.still)
        moved = look_at(np.array([0, 0, 1.0, 0, 0, 0], np.float32), {"front": np.full((48, 64, 3), 90, np.uint8)})
        assert not observation_filter.is_redundant(moved)

    def test_a_camera_that_changed_goes_though_no_joint_moved(self) -> None:
        """B6: stock looks at joints only, so that a cube put on the table is not seen."""
        observation_filter = ObservationFilter(1.0, 8.0)
        observation_filter.answered(self.still)
        frame = np.full((480, 640, 3), 90, np.uint8)
        frame[100:130, 100:130] = (200, 60, 60)
        assert not observation_filter.is_redundant(look_at(np.zeros(6, np.float32), {"front": frame}))

    def test_noise_of_a_sensor_does_not_count_as_change(self) -> None:
        observation_filter = ObservationFilter(1.0, 8.0)
        observation_filter.answered(self.still)
        noise = np.random.default_rng(0).integers(-12, 13, (480, 640, 3))
        look = look_at(np.zeros(6, np.float32), {"front": (90 + noise).astype(np.uint8)})
        assert observation_filter.is_redundant(look)

    def test_tolerance_zero_filters_nothing(self) -> None:
        observation_filter = ObservationFilter(0.0, 8.0)
        observation_filter.answered(self.still)
        assert not observation_filter.is_redundant(self.still)

    def test_what_was_answered_is_not_changed_by_its_buffer(self) -> None:
        state = np.zeros(6, np.float32)
        look = look_at(state, {})
        state += 50
        assert look.state.tolist() == [0] * 6


class TestGuard:
    names = ("a.pos", "b.pos", "gripper.pos")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_chunk_with_nan_or_inf_is_rejected_whole(self, bad: float) -> None:
        """B19: LeRobot's clamp lets NaN through, which becomes an end-of-range command in some motor modes."""
        actions = np.zeros((50, 3), np.float32)
        actions[7, 2] = bad
        with pytest.raises(RejectedChunkError, match="step 7, value 2"):
            check_chunk(actions, 3)

    @pytest.mark.parametrize("shape", [(50, 2), (50, 4), (0, 3), (3,), (1, 50, 3)])
    def test_a_wrong_shape_is_rejected(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(RejectedChunkError, match="shape"):
            check_chunk(np.zeros(shape, np.float32), 3)

    def test_without_bounds_nothing_is_changed(self) -> None:
        action = np.array([1e6, -1e6, 3], np.float32)
        command, clamped = Guard.from_names(self.names, {}, None).clamp(action, np.zeros(3, np.float32))
        assert command.tolist() == action.tolist()
        assert not clamped

    def test_limits_and_steps(self) -> None:
        guard = Guard.from_names(self.names, {"gripper.pos": (0, 100)}, {"a.pos": 2.0})
        command, clamped = guard.clamp(np.array([10, 10, 120], np.float32), np.zeros(3, np.float32))
        assert command.tolist() == [2, 10, 100]
        assert clamped

    @given(
        st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=40),
        st.floats(0.125, 50, width=32),
    )
    def test_no_sequence_of_actions_moves_a_joint_further_per_tick(
        self, actions: list[list[float]], step: float
    ) -> None:
        guard = Guard.from_names(self.names, dict.fromkeys(self.names, (-90, 90)), step)
        previous = np.zeros(3, np.float32)
        for action in actions:
            command, clamped = guard.clamp(np.array(action, np.float32), previous)
            assert (np.abs(command - previous) <= step * (1 + 1e-5)).all()
            assert (np.abs(command) <= 90).all()
            assert clamped == (command.tolist() != np.array(action, np.float32).tolist())
            previous = command

    @pytest.mark.parametrize(
        ("limits", "step", "message"),
        [
            ({"griper.pos": (0, 1)}, None, "joint_limits names griper.pos"),
            ({}, {"z.pos": 1.0}, "max_step names z.pos"),
            ({"a.pos": (1, 0)}, None, "lowest and highest"),
            ({}, -1.0, "positive"),
        ],
    )
    def test_settings_that_fit_no_joint_are_refused(self, limits, step, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Guard.from_names(self.names, limits, step)


class TestLink:
    def test_the_life_of_a_link(self) -> None:
        link = Link(max_offline=60)
        assert link.state(0, 0) is LinkState.CONNECTING
        link.asking(0)
        link.chunk_arrived()
        assert link.state(1, 1.5) is LinkState.STREAMING
        assert link.state(500, 1.5) is LinkState.STREAMING, "no chunk is due while none is asked for"
        link.asking(500)
        assert link.state(500.9, 1.0) is LinkState.STREAMING
        assert link.state(501.1, 0.5) is LinkState.DEGRADED
        assert link.state(502, 0) is LinkState.STALLED
        link.unreachable("the cable is out")
        assert link.state(502, 0.2) is LinkState.DEGRADED
        assert link.state(502, 0) is LinkState.RECONNECTING
        assert link.failure(559) is None
        assert "max_offline=60 s. the cable is out" in (link.failure(560.1) or "")
        assert link.state(560.1, 1.5) is LinkState.FAILED
        link.chunk_arrived()
        assert link.state(561, 1.5) is LinkState.FAILED, "a failure is final"

    def test_a_chunk_mends_it(self) -> None:
        link = Link(max_offline=60)
        link.asking(0)
        link.unreachable("gone")
        link.chunk_arrived()
        assert link.state(100, 1.0) is LinkState.STREAMING
        assert link.failure(1000) is None

    def test_a_service_that_only_answers_errors_fails_too(self) -> None:
        link = Link(max_offline=10)
        link.asking(0)
        link.trouble("POLICY_FAILED: out of memory")
        link.reached()
        assert "out of memory" in (link.failure(10.1) or "")

    def test_slow_answers_are_healthy_while_they_come_as_usual(self) -> None:
        link = Link(max_offline=3)
        link.chunk_arrived()
        link.answers_take(1.2, slow=True)
        assert link.state(0, 1.0) is LinkState.SLOW
        link.asking(1)
        assert [link.state(t, 0) for t in (1, 2.2, 3.3)] == [LinkState.SLOW] * 3
        assert link.state(3.5, 0) is LinkState.STALLED, "twice what is usual, and nothing came"
        assert LinkState.SLOW in HEALTHY

    def test_an_answer_that_comes_as_usual_is_waited_for_beyond_max_offline(self) -> None:
        link = Link(max_offline=1)
        link.answers_take(1.2)
        link.asking(1)
        assert link.failure(3.3) is None
        assert link.failure(3.5) is not None

    def test_a_slow_service_that_is_out_of_reach_is_no_longer_slow(self) -> None:
        link = Link(max_offline=60)
        link.chunk_arrived()
        link.answers_take(1.2, slow=True)
        link.asking(1)
        link.unreachable("gone")
        assert link.state(1.5, 0.5) is LinkState.DEGRADED
        assert link.state(1.5, 0) is LinkState.RECONNECTING
        link.chunk_arrived()
        assert link.state(2, 0) is LinkState.SLOW
        link.answers_take(0.1)
        assert link.state(2, 1) is LinkState.STREAMING

    def test_what_ends_a_run_is_said_of_what_happened_last(self) -> None:
        link = Link(max_offline=10)
        link.asking(0)
        link.observed()
        assert (link.failure(10.1) or "").endswith("The last observation was not answered yet")
        link = Link(max_offline=10)
        link.asking(0)
        assert (link.failure(10.1) or "").endswith("The robot has given no observation yet"), "a camera hangs"
        link = Link(max_offline=10)
        link.unreachable("the cable is out")
        link.chunk_arrived()
        link.asking(20)
        assert "cable" not in (link.failure(31) or ""), "it is in again"

    def test_a_filtered_observation_is_no_outage(self) -> None:
        link = Link(max_offline=10)
        link.asking(0)
        link.chunk_arrived()
        link.asking(1)
        link.idle()
        assert link.state(100, 1.0) is LinkState.STREAMING


class TestRepeats:
    def test_a_message_is_told_once_until_it_is_old_or_another(self) -> None:
        time = 0.0
        repeats = Repeats(period=30, now=lambda: time)
        assert repeats.lets_through("gone")
        assert not repeats.lets_through("gone")
        assert repeats.lets_through("refused")
        assert not repeats.lets_through("gone"), "they may take turns"
        time = 31
        assert repeats.lets_through("refused")
        assert not repeats.lets_through("refused")
        repeats.forget()
        assert repeats.lets_through("refused")


class TestBackoff:
    def test_it_doubles_to_a_cap_and_starts_again(self) -> None:
        backoff = Backoff(first=0.1, cap=0.8)
        waits = [backoff.next() for _ in range(50)]
        assert 0.05 <= waits[0] <= 0.1
        assert all(0.4 <= wait <= 0.8 for wait in waits[3:])
        assert len(set(waits[10:])) > 20, "jitter"
        backoff.reset()
        assert backoff.next() <= 0.1
