"""The action queue: examples, LeRobot's weights, and properties over any interleaving of merges and ticks."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.async_inference.configs import AGGREGATE_FUNCTIONS as LEROBOT_AGGREGATE_FUNCTIONS
from lerobot.policies.act.modeling_act import ACTTemporalEnsembler

from longarm_edge.action_queue import ActionChunk, ActionQueue, Drop
from longarm_edge.merging import LEROBOT_MERGES, Merge, but_for, fade, latest_only, temporal_ensemble

MERGES: dict[str, Merge] = {
    **LEROBOT_MERGES,
    "fade": fade(3.0),
    "temporal_ensemble": temporal_ensemble(0.01),
    "fade, but for one": but_for([1], fade(3.0)),
}


def chunk(step: int, steps: int, sequence: int, *, captured_at: float = 0.0, epoch: int = 0, episode: int = 0):
    """A chunk whose values name where they come from: (sequence, step), and in model space (sequence, step, 0)."""
    actions = np.array([[sequence, step + i] for i in range(steps)], np.float32).reshape(steps, 2)
    return ActionChunk(epoch, episode, sequence, step, captured_at, actions, np.pad(actions, ((0, 0), (0, 1))))


def make_queue(merging: Merge = latest_only, max_action_age: float = 3.0) -> ActionQueue:
    return ActionQueue(max_action_age, merging)


def play(queue: ActionQueue, steps: int, now: float = 0.0) -> list[list[float]]:
    """Takes so many times; returns the values of what was there."""
    taken = [queue.take(now)[0] for _ in range(steps)]
    return [action.values.tolist() for action in taken if action is not None]


def test_actions_come_out_in_their_order() -> None:
    queue = make_queue()
    assert queue.merge(chunk(0, 3, 1), 0.0) is None
    taken = [queue.take(0.0)[0] for _ in range(4)]
    assert [None if a is None else a.step for a in taken] == [0, 1, 2, None]


def test_a_chunk_loses_what_was_executed_since_its_observation() -> None:
    """B13: stock discards the first action of every chunk whether it is late or not."""
    queue = make_queue()
    queue.merge(chunk(0, 9, 1), 0.0)
    play(queue, 5)
    assert queue.merge(chunk(3, 10, 2), 0.0) is None
    assert queue.drops[Drop.LATE] == 2
    assert play(queue, 1) == [[2, 5]]


def test_a_chunk_that_the_arm_stood_waiting_for_loses_nothing() -> None:
    """The plan's time stands while the arm does: a chunk that took 16 ticks must not begin with its 17th action."""
    queue = make_queue()
    queue.merge(chunk(0, 4, 1), 0.0)
    assert play(queue, 20) == [[1, 0], [1, 1], [1, 2], [1, 3]]
    queue.merge(chunk(4, 10, 2), 0.0)
    assert play(queue, 3) == [[2, 4], [2, 5], [2, 6]]
    assert queue.drops[Drop.LATE] == 0


def test_a_chunk_of_which_all_was_executed_leaves_nothing() -> None:
    queue = make_queue()
    queue.merge(chunk(0, 9, 1), 0.0)
    play(queue, 9)
    assert queue.merge(chunk(2, 5, 2), 0.0) is Drop.LATE
    assert queue.depth() == 0
    assert queue.drops[Drop.LATE] == 5


def test_a_chunk_that_is_over_when_it_comes_takes_nothing_away() -> None:
    """A policy whose chunks differ in length: the arm stood although actions were left."""
    queue = make_queue()
    queue.merge(chunk(0, 9, 1), 0.0)
    play(queue, 4)
    assert queue.merge(chunk(2, 2, 2), 0.0) is Drop.LATE
    assert queue.drops[Drop.LATE] == 2
    assert play(queue, 9) == [[1, 4], [1, 5], [1, 6], [1, 7], [1, 8]]


def test_a_chunk_for_a_step_to_come_is_refused() -> None:
    queue = make_queue()
    with pytest.raises(ValueError, match="from step 0 or before but found one from 1"):
        queue.merge(chunk(1, 5, 1), 0.0)


def test_old_actions_past_the_end_of_a_new_chunk_go() -> None:
    queue = make_queue()
    queue.merge(chunk(0, 10, 1), 0.0)
    play(queue, 3)
    queue.merge(chunk(2, 3, 2), 0.0)
    assert queue.depth() == 2
    assert queue.drops[Drop.REPLACED] == 5
    assert play(queue, 9) == [[2, 3], [2, 4]]


def test_an_action_older_than_max_action_age_is_never_executed() -> None:
    """B14: after a stall of 30 s the stock client executes the answer to an observation that old."""
    queue = make_queue(max_action_age=3.0)
    queue.merge(chunk(0, 10, 1, captured_at=10.0), 10.5)
    assert queue.take(13.0)[0] is not None
    assert queue.take(13.001) == (None, True)
    assert queue.drops[Drop.EXPIRED] == 9, "the others are as old"
    assert queue.take(13.001) == (None, False)
    queue.merge(chunk(1, 4, 2, captured_at=13.5), 14.0)
    assert play(queue, 1, 14.0) == [[2, 1]], "the plan goes on where it stopped"


def test_a_chunk_that_is_too_old_when_it_comes_is_not_taken() -> None:
    queue = make_queue(max_action_age=3.0)
    queue.merge(chunk(0, 2, 1, captured_at=1.0), 1.5)
    assert queue.merge(chunk(0, 10, 2, captured_at=1.0), 4.1) is Drop.EXPIRED
    assert queue.drops[Drop.EXPIRED] == 10


def test_playback_left_counts_only_what_can_be_executed() -> None:
    queue = make_queue(max_action_age=1.0)
    queue.merge(chunk(0, 90, 1, captured_at=0.0), 0.0)
    assert queue.playback_left(now=0.0, fps=30) == pytest.approx(1.0, abs=0.05)
    assert queue.playback_left(now=0.9, fps=30) == pytest.approx(0.1, abs=0.05)
    assert queue.playback_left(now=1.1, fps=30) == 0
    play(queue, 90)
    assert queue.playback_left(now=0.0, fps=30) == 0


def test_replies_of_another_epoch_or_episode_and_older_ones_are_dropped() -> None:
    queue = make_queue()
    assert queue.merge(chunk(0, 4, 2), 0.0) is None
    assert queue.merge(chunk(0, 4, 1), 0.0) is Drop.FOREIGN
    assert queue.merge(chunk(0, 4, 2), 0.0) is Drop.FOREIGN
    queue.begin_epoch()
    assert queue.merge(chunk(0, 4, 3, epoch=0), 0.0) is Drop.FOREIGN
    assert queue.depth() == 4, "what is queued stays playable over a reconnect"
    queue.begin_episode()
    assert queue.depth() == 0
    assert queue.merge(chunk(0, 4, 4, epoch=1, episode=0), 0.0) is Drop.FOREIGN
    assert queue.merge(chunk(0, 4, 5, epoch=1, episode=1), 0.0) is None
    assert queue.drops[Drop.FOREIGN] == 16


@pytest.mark.parametrize("name", LEROBOT_AGGREGATE_FUNCTIONS)
def test_blending_equals_lerobots_to_the_bit(name: str) -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 50, 6)).astype(np.float32)
    queue = make_queue(LEROBOT_MERGES[name])
    queue.merge(ActionChunk(0, 0, 1, 0, 0.0, old), 0.0)
    queue.merge(ActionChunk(0, 0, 2, 0, 0.0, new), 0.0)
    merged = np.stack([queue.take(0.0)[0].values for _ in range(50)])
    expected = LEROBOT_AGGREGATE_FUNCTIONS[name](torch.from_numpy(old), torch.from_numpy(new)).numpy()
    np.testing.assert_array_equal(merged, expected)


def test_every_aggregate_function_of_lerobot_is_there() -> None:
    assert LEROBOT_MERGES.keys() == LEROBOT_AGGREGATE_FUNCTIONS.keys()


@pytest.mark.parametrize("coefficient", [0.0, 0.01, 0.5, 30.0, -0.1])
def test_temporal_ensembling_equals_acts(coefficient: float) -> None:
    """A chunk at each step, as LeRobot asks for; past its end, too, where the oldest chunks fall out."""
    chunks = np.random.default_rng(0).normal(0, 30, (25, 8, 6)).astype(np.float32)
    ensembler = ACTTemporalEnsembler(coefficient, chunk_size=8)
    queue = make_queue(temporal_ensemble(coefficient))
    for step, actions in enumerate(chunks):
        queue.merge(ActionChunk(0, 0, step + 1, step, 0.0, actions), 0.0)
        expected = ensembler.update(torch.from_numpy(actions)[None])[0].numpy()
        values = queue.take(0.0)[0].values
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coefficient", [0.2, -0.2])
def test_a_chunk_counts_for_the_steps_between_however_many_chunks_came(coefficient: float) -> None:
    queue = make_queue(temporal_ensemble(coefficient))
    steps = (0, 3, 3, 7)
    for number, step in enumerate(steps, 1):
        play(queue, step - queue.next_step)
        queue.merge(chunk(step, 12, number), 0.0)
    weights = np.exp(-coefficient * np.array(steps))
    (first, _), *_, (last, _) = play(queue, 12)
    assert first == pytest.approx(np.average(range(1, 5), weights=weights)), "step 7: of all four"
    assert last == 4, "step 18: of the last alone"


def test_no_coefficient_makes_an_action_that_is_no_number() -> None:
    for coefficient in (1e6, -1e6):
        queue = make_queue(temporal_ensemble(coefficient))
        for step in range(6):
            queue.merge(chunk(step, 12, step + 1), 0.0)
            (values,) = play(queue, 1)
            assert values == [1 if coefficient > 0 else step + 1, step]


def test_an_ensemble_is_of_one_episode() -> None:
    queue = make_queue(temporal_ensemble(0.01))
    queue.merge(chunk(0, 12, 1), 0.0)
    play(queue, 8)
    queue.merge(chunk(8, 12, 2), 0.0)
    queue.begin_episode()
    queue.merge(chunk(0, 12, 3, episode=1), 0.0)
    play(queue, 1)
    queue.merge(chunk(1, 12, 4, episode=1), 0.0)
    assert play(queue, 1)[0][0] == pytest.approx(3.5, abs=0.01)


def test_the_outlook_is_what_comes() -> None:
    queue = make_queue()
    queue.merge(chunk(0, 6, 1), 0.0)
    play(queue, 2)
    queue.begin_epoch()
    outlook = queue.outlook()
    assert (outlook.epoch, outlook.episode, outlook.step) == (1, 0, 2)
    assert [action.step for action in outlook.coming] == [2, 3, 4, 5]
    assert [queue.take(0.0)[0] for _ in range(4)] == list(outlook.coming)


def test_actions_keep_their_model_space_values() -> None:
    queue = make_queue()
    queue.merge(chunk(0, 10, 1), 0.0)
    play(queue, 3)
    queue.merge(chunk(1, 6, 2), 0.0)
    values = [(a.values.tolist(), a.model_values.tolist()) for a in queue.outlook().coming]
    assert values == [([2, step], [2, step, 0]) for step in range(3, 7)]


# One event of a run: a tick, the reply to an observation of so many steps ago, a reconnect or a new episode
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.floats(0.0, 0.2)),
        st.tuples(
            st.just("reply"), st.integers(0, 8), st.floats(0.0, 0.7), st.integers(1, 12), st.integers(-2, 3),
            st.integers(0, 1),
        ),
        st.tuples(st.just("epoch")),
        st.tuples(st.just("episode")),
    ),
    max_size=80,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(events=EVENTS, name=st.sampled_from(sorted(MERGES)))
def test_no_interleaving_executes_a_step_twice_out_of_order_or_not_at_all(events: list[tuple], name: str) -> None:
    """B3: merging races with execution in the stock client, which repeats steps and goes back."""
    queue = make_queue(MERGES[name], max_action_age=0.5)
    now, sequence, epoch, episode = 0.0, 0, 0, 0
    executed: list[int] = []
    captures: dict[int, float] = {}
    dropped: Counter[Drop] = Counter()
    for event in events:
        match event:
            case ("tick", elapsed):
                now += elapsed
                before = queue.depth()
                action, expired = queue.take(now)
                if action is None:
                    assert queue.depth() == 0
                    assert expired == (before > 0)
                    dropped[Drop.EXPIRED] += before
                    continue
                assert not expired
                assert queue.depth() == before - 1
                assert action.step == len(executed), "each step once, in order, none left out"
                assert action.model_values.tolist() == [action.sequence, action.step, 0], (
                    "the newest chunk's, of this step"
                )
                assert action.sequence in captures, "never from a dropped epoch or episode"
                assert now - captures[action.sequence] <= 0.5, "never beyond its age"
                executed.append(action.step)
            case ("reply", ago, age, length, newer, behind):
                reply = chunk(
                    max(0, len(executed) - ago), length, sequence + newer, captured_at=now - age,
                    epoch=epoch - behind, episode=episode,
                )  # fmt: skip
                before = queue.depth()
                result = queue.merge(reply, now)
                late = len(executed) - reply.step
                if behind or newer <= 0:
                    assert result is Drop.FOREIGN
                    dropped[Drop.FOREIGN] += length
                    assert queue.depth() == before
                    continue
                sequence += newer
                if age > 0.5:
                    assert result is Drop.EXPIRED
                    dropped[Drop.EXPIRED] += length
                    assert queue.depth() == before
                    continue
                captures[sequence] = now - age
                dropped[Drop.LATE] += min(length, late)
                if late >= length:
                    assert result is Drop.LATE
                    assert queue.depth() == before, "an older chunk that reaches further stays"
                    continue
                assert result is None
                assert queue.depth() == length - late, "as many are lost as were executed since the capture"
                dropped[Drop.REPLACED] += max(0, before - (length - late))
            case ("epoch",):
                epoch = queue.begin_epoch()
            case ("episode",):
                dropped[Drop.REPLACED] += queue.depth()
                episode = queue.begin_episode()
                executed.clear()
                captures.clear()
        assert queue.next_step == len(executed)
        coming = queue.outlook().coming
        assert [a.step for a in coming] == list(range(len(executed), len(executed) + len(coming))), "no gap"
        assert len({a.captured_at for a in coming}) <= 1, "all as old as the newest chunk"
        assert [a.model_values[:2].tolist() for a in coming] == [[a.sequence, a.step] for a in coming]
        assert queue.playback_left(now, 30) * 30 <= queue.depth() + 1e-6
    assert +queue.drops == +dropped, "every action ends in one way, with its reason"
