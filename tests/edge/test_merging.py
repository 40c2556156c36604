"""How a new chunk meets what is left of the old plan: place, speed and age where they meet."""

import numpy as np
import pytest

from longarm_edge.action_queue import ActionChunk, ActionQueue
from longarm_edge.merging import LEROBOT_MERGES, Merge, Seam, but_for, fade, latest_only, temporal_ensemble

# The time constant of the fade, in steps
TAU = 3.0


def ramp(begin: float, speed: float, steps: int = 40) -> np.ndarray:
    """A plan of two values that moves steadily, and one that is open."""
    at = begin + speed * np.arange(steps)
    return np.stack([at, -at, np.ones(steps)], axis=1).astype(np.float32)


def executed(queue: ActionQueue, steps: int) -> np.ndarray:
    actions = [queue.take(0.0)[0] for _ in range(steps)]
    return np.stack([action.values for action in actions if action is not None])


def merged(merging: Merge, old: np.ndarray, new: np.ndarray, *, after: int, late: int) -> np.ndarray:
    """All that is executed where new, of an observation late steps ago, comes after so many steps of old."""
    queue = ActionQueue(10.0, merging)
    queue.merge(ActionChunk(0, 0, 1, 0, 0.0, old), 0.0)
    before = executed(queue, after)
    queue.merge(ActionChunk(0, 0, 2, after - late, 0.0, new), 0.0)
    return np.concatenate([before, executed(queue, len(new) - late)])


@pytest.mark.parametrize("late", [0, 4])
def test_a_fade_goes_on_at_the_old_place_and_speed_and_ends_in_the_new_plan(late: int) -> None:
    old, new = ramp(0, 1), ramp(30, -0.5)
    path = merged(fade(TAU), old, new, after=10, late=late)[:, 0]
    assert path[10] == pytest.approx(10), "where the old one would have been"
    steps = np.diff(path)
    assert np.abs(np.diff(steps)).max() < 20 / TAU**2, "no kick: a jump would be 20 in one step"
    np.testing.assert_allclose(path[10 + 30 :], new[late + 30 :, 0], atol=0.05)
    assert path.max() <= 31, "and does not overshoot"


def test_a_fade_between_plans_that_agree_is_the_plan() -> None:
    plan = ramp(0, 1)
    np.testing.assert_allclose(merged(fade(TAU), plan, plan[6:], after=10, late=4), plan, atol=1e-4)


def test_how_often_a_plan_is_told_makes_no_difference_to_a_fade() -> None:
    """The rest of an offset is the next one's: a fade that begins anew with each chunk would never end."""
    old, new = ramp(0, 1, 60), ramp(30, 0, 60)
    once = merged(fade(TAU), old, new, after=10, late=0)
    queue = ActionQueue(10.0, fade(TAU))
    queue.merge(ActionChunk(0, 0, 1, 0, 0.0, old), 0.0)
    often = [executed(queue, 10)]
    for number in range(20):
        queue.merge(ActionChunk(0, 0, 2 + number, 10 + 2 * number, 0.0, new[: 60 - 2 * number]), 0.0)
        often.append(executed(queue, 2))
    often = np.concatenate(often)
    np.testing.assert_allclose(often, once[: len(often)], atol=1e-3)


def test_an_arm_that_stood_begins_with_the_chunk_as_it_is() -> None:
    queue = ActionQueue(10.0, fade(TAU))
    queue.merge(ActionChunk(0, 0, 1, 0, 0.0, ramp(0, 1, 5)), 0.0)
    executed(queue, 5)
    assert queue.take(0.0) == (None, False)
    queue.merge(ActionChunk(0, 0, 2, 5, 0.0, ramp(7, 1)), 0.0)
    queue.merge(ActionChunk(0, 0, 3, 5, 0.0, ramp(7, 1)), 0.0)
    np.testing.assert_array_equal(executed(queue, 20), ramp(7, 1)[:20])


@pytest.mark.parametrize("merging", [fade(TAU), temporal_ensemble(0.01)], ids=["fade", "temporal_ensemble"])
def test_an_arm_that_stands_has_one_opinion_to_follow(merging: Merge) -> None:
    """While it was eased in, the plan stood: it went the whole way to what the first of many chunks had said."""
    queue = ActionQueue(10.0, merging)
    for number in range(1, 11):
        queue.merge(ActionChunk(0, 0, number, 0, 0.0, ramp(100, 0)), 0.0)
    queue.merge(ActionChunk(0, 0, 11, 0, 0.0, ramp(-60, 0)), 0.0)
    np.testing.assert_array_equal(executed(queue, 20), ramp(-60, 0)[:20])


@pytest.mark.parametrize("fps", [10, 30, 100, 200])
def test_a_fade_never_goes_beyond_what_was_said(fps: int) -> None:
    """Plans that jump, as of a gripper: the jump was taken for a speed, and carried on by ten times as much."""
    old, new = (np.repeat([[0.0], [40.0]], [opens, 60 - opens], axis=0).astype(np.float32) for opens in (10, 11))
    path = merged(fade(0.1 * fps), old, new, after=11, late=0)
    assert 0 <= path.min() <= path.max() <= 40


def test_a_chunk_that_comes_as_the_queue_runs_dry_fades_too() -> None:
    """A tick later the arm would have stood; a tick before, something would have been left. Here it leapt by 60."""
    path = merged(fade(TAU), ramp(0, 1, 10), ramp(69, 1), after=10, late=0)[:, 0]
    assert np.abs(np.diff(path)).max() < 60 / TAU
    np.testing.assert_allclose(path[-10:], ramp(69, 1)[-10:, 0], atol=0.1)


def test_one_action_is_a_chunk_too() -> None:
    values = [merged(fade(TAU), ramp(0, 1), ramp(5, 0, 1), after=3, late=0)[3, 0]]
    assert values == [3]


@pytest.mark.parametrize("merging", [fade(TAU), LEROBOT_MERGES["average"], temporal_ensemble(0.01)])
def test_what_is_not_to_be_blended_is_the_newest_chunks(merging: Merge) -> None:
    old, new = ramp(0, 1), ramp(10, 1)
    new[:, 2] = 0
    path = merged(but_for([2], merging), old, new, after=5, late=0)
    assert path[:, 2].tolist() == [1] * 5 + [0] * 40
    assert path[5, 0] < 10, "the others are"
    assert but_for([], merging) is merging


@pytest.mark.parametrize(
    ("merging", "ages"),
    [
        (latest_only, [1, 1, 1]),
        (LEROBOT_MERGES["weighted_average"], [1.3, 1.3, 1.3]),
        (temporal_ensemble(0.0), [1.5, 1.5, 1.5]),
        # At the switch it is the old plan, whatever is said of it; and then less and less
        (fade(1.0), [2, 1 + (2 - 1 / np.e) / np.e, 1 + (3 - 2 / np.e) / np.e**2]),
    ],
    ids=["latest_only", "weighted_average", "temporal_ensemble", "fade"],
)
def test_a_blend_is_as_old_as_its_parts(merging: Merge, ages: list[float]) -> None:
    """A blend that looked as fresh as its newest part would look fresher than it acts."""
    queue = ActionQueue(10.0, merging)
    queue.merge(ActionChunk(0, 0, 1, 0, 0.0, ramp(1, 1, 4)), 2.0)
    queue.take(2.0)
    queue.merge(ActionChunk(0, 0, 2, 1, 1.0, ramp(2, 1, 3)), 2.0)
    coming = queue.outlook().coming
    assert [2 - action.mean_captured_at for action in coming] == pytest.approx(ages)
    assert {2 - action.captured_at for action in coming} == {1}, "the newest part"


def test_a_seam_without_an_old_plan_is_no_blend() -> None:
    new = ramp(3, 1, 4)
    for merging in (*LEROBOT_MERGES.values(), fade(TAU), temporal_ensemble(0.1)):
        found = merging(Seam(new, new[:0], np.zeros(0), None, None, 0))
        np.testing.assert_array_equal(found.values, new)
        assert found.shares.tolist() == [1] * 4
