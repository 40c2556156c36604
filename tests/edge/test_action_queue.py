"""The action queue: examples, LeRobot's weights, and properties over any interleaving of merges and ticks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.async_inference.configs import AGGREGATE_FUNCTIONS as LEROBOT_AGGREGATE_FUNCTIONS

from longarm_edge.action_queue import AGGREGATE_FUNCTIONS, ActionChunk, ActionQueue, Drop


def chunk(tick: int, steps: int, sequence: int, *, captured_at: float = 0.0, epoch: int = 0, episode: int = 0):
    """A chunk whose values name where they come from: (sequence, tick), and in model space (sequence, tick, 0)."""
    actions = np.array([[sequence, tick + i] for i in range(steps)], np.float32).reshape(steps, 2)
    return ActionChunk(epoch, episode, sequence, tick, captured_at, actions, np.pad(actions, ((0, 0), (0, 1))))


def make_queue(aggregate: str = "latest_only", max_action_age: float = 3.0) -> ActionQueue:
    return ActionQueue(AGGREGATE_FUNCTIONS[aggregate], max_action_age)


def test_actions_come_out_at_their_ticks() -> None:
    queue = make_queue()
    assert queue.merge(chunk(0, 3, 1)).taken
    taken = [queue.take(tick, 0.0)[0] for tick in range(4)]
    assert [None if a is None else a.tick for a in taken] == [0, 1, 2, None]


def test_actions_whose_tick_has_passed_are_dropped_and_counted() -> None:
    """B13: stock discards the first action of every chunk whether it is late or not."""
    queue = make_queue()
    for tick in range(5):
        queue.take(tick, 0.0)
    assert queue.merge(chunk(3, 10, 1)).late_count == 2
    assert queue.drops[Drop.LATE] == 2
    action, _ = queue.take(5, 0.0)
    assert action is not None
    assert action.values.tolist() == [1, 5]


def test_a_whole_chunk_that_is_late_leaves_nothing() -> None:
    queue = make_queue()
    queue.take(20, 0.0)
    assert queue.merge(chunk(0, 5, 1)).late_count == 5
    assert queue.depth() == 0


def test_old_actions_past_the_end_of_a_new_chunk_go() -> None:
    queue = make_queue()
    queue.merge(chunk(0, 10, 1))
    queue.merge(chunk(2, 3, 2))
    assert queue.depth() == 5
    assert queue.drops[Drop.REPLACED] == 5
    assert [queue.take(t, 0.0)[0].sequence for t in range(5)] == [1, 1, 2, 2, 2]


def test_an_action_older_than_max_action_age_is_never_executed() -> None:
    """B14: after a stall of 30 s the stock client executes the answer to an observation that old."""
    queue = make_queue(max_action_age=3.0)
    queue.merge(chunk(0, 10, 1, captured_at=10.0))
    assert queue.take(0, 13.0)[0] is not None
    assert queue.take(1, 13.001) == (None, True)
    assert queue.drops[Drop.EXPIRED] == 1


def test_playback_left_counts_only_what_can_be_executed() -> None:
    queue = make_queue(max_action_age=1.0)
    queue.merge(chunk(0, 90, 1, captured_at=0.0))
    assert queue.playback_left(now=0.0, fps=30) == pytest.approx(1.0, abs=0.05)
    assert queue.playback_left(now=0.9, fps=30) == pytest.approx(0.1, abs=0.05)
    assert queue.playback_left(now=1.1, fps=30) == 0
    queue.take(95, 0.0)
    assert queue.playback_left(now=0.0, fps=30) == 0


def test_playback_left_stops_at_a_gap() -> None:
    queue = make_queue()
    queue.merge(chunk(5, 10, 1))
    assert queue.playback_left(now=0.0, fps=30) == 0
    assert queue.depth() == 10


def test_replies_of_another_epoch_or_episode_and_older_ones_are_dropped() -> None:
    queue = make_queue()
    assert queue.merge(chunk(0, 4, 2)).taken
    assert not queue.merge(chunk(0, 4, 1)).taken
    assert not queue.merge(chunk(0, 4, 2)).taken
    queue.begin_epoch()
    assert not queue.merge(chunk(0, 4, 3, epoch=0)).taken
    assert queue.depth() == 4, "what is queued stays playable over a reconnect"
    queue.begin_episode()
    assert queue.depth() == 0
    assert not queue.merge(chunk(0, 4, 4, epoch=1, episode=0)).taken
    assert queue.merge(chunk(0, 4, 5, epoch=1, episode=1)).taken
    assert queue.drops[Drop.FOREIGN] == 16


def test_a_tick_cannot_be_taken_twice() -> None:
    queue = make_queue()
    queue.take(3, 0.0)
    with pytest.raises(ValueError, match="from 4 on but found 3"):
        queue.take(3, 0.0)


@pytest.mark.parametrize("name", LEROBOT_AGGREGATE_FUNCTIONS)
def test_blending_equals_lerobots_to_the_bit(name: str) -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 50, 6)).astype(np.float32)
    queue = make_queue(name)
    queue.merge(ActionChunk(0, 0, 1, 0, 0.0, old))
    queue.merge(ActionChunk(0, 0, 2, 0, 0.0, new))
    merged = np.stack([queue.take(t, 0.0)[0].values for t in range(50)])
    expected = LEROBOT_AGGREGATE_FUNCTIONS[name](torch.from_numpy(old), torch.from_numpy(new)).numpy()
    np.testing.assert_array_equal(merged, expected)


def test_every_aggregate_function_of_lerobot_is_there() -> None:
    assert AGGREGATE_FUNCTIONS.keys() == {*LEROBOT_AGGREGATE_FUNCTIONS, "rtc"}


def test_the_outlook_is_what_the_next_ticks_take_up_to_a_gap() -> None:
    queue = make_queue("rtc")
    queue.merge(chunk(0, 6, 1))
    queue.take(1, 0.0)
    queue.begin_epoch()
    outlook = queue.outlook()
    assert (outlook.epoch, outlook.episode, outlook.tick) == (1, 0, 2)
    assert [action.tick for action in outlook.coming] == [2, 3, 4, 5]
    assert [queue.take(tick, 0.0)[0] for tick in range(2, 6)] == list(outlook.coming)
    queue.merge(chunk(9, 3, 2, epoch=1))
    assert queue.outlook().coming == (), "what comes after a gap is no continuation"


def test_actions_keep_their_model_space_values() -> None:
    queue = make_queue("rtc")
    queue.merge(chunk(0, 10, 1))
    queue.take(2, 0.0)
    queue.merge(chunk(1, 6, 2))
    values = [(a.values.tolist(), a.model_values.tolist()) for a in queue.outlook().coming]
    assert values == [([2, tick], [2, tick, 0]) for tick in range(3, 7)]


# One step of a run: the loop's tick (with ticks given up before it), a reply, a reconnect or a new episode
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.integers(0, 3), st.floats(0.0, 0.2)),
        st.tuples(st.just("reply"), st.integers(-6, 6), st.integers(1, 12), st.integers(-2, 3), st.integers(0, 1)),
        st.tuples(st.just("epoch")),
        st.tuples(st.just("episode")),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, aggregate=st.sampled_from(sorted(AGGREGATE_FUNCTIONS)))
def test_no_interleaving_executes_a_wrong_action(steps: list[tuple], aggregate: str) -> None:
    """B3: merging races with execution in the stock client, which repeats steps and goes back."""
    queue = make_queue(aggregate, max_action_age=0.5)
    now, next_tick, sequence, merged, epoch, episode = 0.0, 0, 10, 0, 0, 0
    executed: list[tuple[int, int]] = []
    valid_captures: dict[int, float] = {}
    offered = late_or_foreign = 0
    for step in steps:
        match step:
            case ("tick", skip, elapsed):
                now += elapsed
                tick = next_tick + skip
                before = queue.depth()
                action, expired = queue.take(tick, now)
                next_tick = tick + 1
                assert queue.next_tick == next_tick
                assert queue.depth() <= before
                if action is None:
                    continue
                assert not expired
                assert action.tick == tick, "executed for its own tick only"
                assert action.model_values.tolist() == [action.sequence, tick, 0], "the newest chunk's, of this tick"
                assert (episode, tick) not in executed, "never twice"
                assert not executed or executed[-1] < (episode, tick), "never out of order"
                assert action.sequence in valid_captures, "never from a dropped epoch or episode"
                assert now - valid_captures[action.sequence] <= 0.5, "never beyond its age"
                executed.append((episode, tick))
            case ("reply", ahead, length, newer, behind):
                sequence_of_reply = sequence + newer
                its_epoch = max(0, epoch - behind)
                tick = max(0, next_tick + ahead)
                result = queue.merge(
                    chunk(tick, length, sequence_of_reply, captured_at=now, epoch=its_epoch, episode=episode)
                )
                offered += length
                assert result.taken == (its_epoch == epoch and sequence_of_reply > merged)
                if result.taken:
                    sequence = merged = sequence_of_reply
                    valid_captures[sequence_of_reply] = now
                    late_or_foreign += result.late_count
                else:
                    late_or_foreign += length
            case ("epoch",):
                epoch = queue.begin_epoch()
            case ("episode",):
                episode = queue.begin_episode()
                next_tick = 0
                valid_captures.clear()
        coming = queue.outlook().coming
        assert [a.tick for a in coming] == list(range(next_tick, next_tick + len(coming)))
        assert [a.model_values[:2].tolist() for a in coming] == [[a.sequence, a.tick] for a in coming]
    drops = queue.drops
    assert drops[Drop.LATE] + drops[Drop.FOREIGN] == late_or_foreign
    assert len(executed) + queue.depth() <= offered, "no action is made up"
    assert queue.depth() == 0 or queue.playback_left(now, 30) * 30 <= queue.depth()


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_every_action_ends_in_exactly_one_way(steps: list[tuple]) -> None:
    """Nothing is lost: what was offered is executed, queued, dropped with a reason, or replaced by a newer one."""
    queue = make_queue(max_action_age=0.5)
    now, next_tick, sequence, epoch, episode = 0.0, 0, 10, 0, 0
    offered = executed = overwritten = 0
    for step in steps:
        match step:
            case ("tick", skip, elapsed):
                now += elapsed
                action, _ = queue.take(next_tick + skip, now)
                next_tick += skip + 1
                executed += action is not None
            case ("reply", ahead, length, newer, behind):
                tick = max(0, next_tick + ahead)
                before, drops_before = queue.depth(), queue.drops.total()
                taken = queue.merge(
                    chunk(tick, length, sequence + newer, captured_at=now, epoch=epoch - behind, episode=episode)
                ).taken
                if taken:
                    sequence += newer
                offered += length
                overwritten += before + length - queue.depth() - (queue.drops.total() - drops_before)
            case ("epoch",):
                epoch = queue.begin_epoch()
            case ("episode",):
                episode, next_tick = queue.begin_episode(), 0
    assert offered == executed + queue.depth() + queue.drops.total() + overwritten
    assert overwritten >= 0
