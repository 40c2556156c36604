"""When the demo calls a run healthy."""

import dataclasses

import pytest
from prometheus_client import CollectorRegistry

from longarm_edge.demo import verdict
from longarm_edge.metrics import EdgeMetrics, Observation, Tick
from longarm_edge.report import summarize
from longarm_edge.run import RunResult
from longarm_edge.trace import Trace
from longarm_wire import exit_codes


def result(*, code: int = exit_codes.DONE, idle: int = 0, ticks=None, observations=None) -> RunResult:
    empty = summarize(Trace(EdgeMetrics(CollectorRegistry())), {}, 30)
    summary = dataclasses.replace(
        empty,
        ticks={**empty.ticks, Tick.ACTION: 600, **(ticks or {})},
        observations={**empty.observations, Observation.ANSWERED: 20, **(observations or {})},
        idle_after_first_second=idle,
    )
    return RunResult(code, "why", summary)


def test_a_good_run() -> None:
    assert verdict(result()) == []
    assert verdict(result(ticks={Tick.SKIPPED: 3})) == [], "a machine that stalled for a moment is no fault of the run"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"code": exit_codes.FAILED}, "why"),
        ({"idle": 1}, "1 idle ticks"),
        ({"ticks": {Tick.SKIPPED: 30}}, "too busy"),
        ({"observations": {Observation.ANSWERED: 1}}, "only 1 chunks"),
        ({"observations": {Observation.REJECTED: 1}}, "1 observations rejected"),
        ({"observations": {Observation.LOST: 2}}, "2 observations lost"),
    ],
)
def test_what_is_not_healthy(bad: dict, words: str) -> None:
    (problem,) = verdict(result(**bad))
    assert words in problem
