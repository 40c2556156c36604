"""The table of forward passes says what was timed."""

import itertools
import time

import numpy as np
import pytest

from bench.forward import BATCH, EAGER, measured


def test_a_batch_counts_per_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two readings a turn: the first way takes 10 ms, the second 20 ms, the batch 40 ms
    clock = itertools.accumulate(itertools.cycle([0, 0.01, 0, 0.02, 0, 0.04]))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    zero, one = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    lines = measured({EAGER: lambda: zero, "slow": lambda: one, f"slow, batch of {BATCH}": lambda: zero}, rounds=5)
    assert lines[2:] == [
        "| float32 | 10.0 / 10.0 | 10.0 | 1.00 | 0.000 |",
        "| slow | 20.0 / 20.0 | 20.0 | 0.50 | 1.000 |",
        "| slow, batch of 8 | 40.0 / 40.0 | 5.0 | 2.00 |  |",
    ]
