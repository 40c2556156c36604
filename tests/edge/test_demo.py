"""When the demo calls a run healthy, and what it does about files that are not as they should be."""

import dataclasses
import io
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from longarm_edge import demo as module
from longarm_edge.demo import demo, verdict
from longarm_edge.metrics import EdgeMetrics, Observation, Tick
from longarm_edge.report import summarize
from longarm_edge.run import RunResult
from longarm_edge.settings import EdgeSettings
from longarm_edge.trace import Trace
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError


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


def test_a_policy_that_was_interrupted_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its config.json is written first, and a service cannot load that alone."""
    interrupted = [True, False]

    def make(command: list[str], **_: object) -> None:
        directory = Path(command[-1])
        directory.mkdir(exist_ok=True)
        (directory / "config.json").touch()
        if interrupted.pop(0):
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", make)
    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        module._checkpoint(tmp_path, console)
    for _ in range(2):
        assert (module._checkpoint(tmp_path, console) / "config.json").is_file()
    assert interrupted == []


def test_a_place_that_cannot_hold_its_files_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").touch()
    with pytest.raises(ConfigurationError, match=f"keeps its files in {tmp_path}/out/demo"):
        demo(EdgeSettings(_env_file=None), [], Console(file=io.StringIO()))
