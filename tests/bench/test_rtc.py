"""What the bench measures of real-time chunking is there, in a short run."""

from pathlib import Path

import pytest

from bench.rtc import load, steps_at_switches


@pytest.mark.parametrize("delay", [3, 7])
def test_chunks_that_follow_each_other_meet_without_a_jump(tmp_path: Path, delay: int) -> None:
    policy = load(tmp_path)
    jumps, inside = steps_at_switches(policy, "latest_only", delay, horizon=14, ticks=600)
    following, _ = steps_at_switches(policy, "rtc", delay, horizon=14, ticks=600)
    assert len(jumps) == len(following) > 10
    assert jumps.max() > 4 * inside.max(), "the policy is of two minds, else there is nothing to mend"
    assert following.max() < 0.3 * jumps.max()
