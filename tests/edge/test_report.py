"""Progress and the status line during a run, and the summary and the picture at its end."""

import io
import threading

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from rich.console import Console

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_edge.action_queue import Drop
from longarm_edge.console import StatusLine, opening
from longarm_edge.link import LinkState
from longarm_edge.metrics import EdgeMetrics, Observation, Stage, Tick
from longarm_edge.report import draw, render, summarize
from longarm_edge.smoothness import Step, Where
from longarm_edge.trace import RequestRecord, TickRecord, Trace

FPS = 30.0


def three_seconds() -> Trace:
    """Returns a run with a late tick, two idle ticks in the first second, one after it, and three skipped."""
    found = Trace(EdgeMetrics(CollectorRegistry()))
    tick = 0
    while tick < 90:
        outcome = Tick.IDLE if tick in (3, 4, 60) else Tick.ACTION
        skipped = 3 if tick == 70 else 0
        age = 0.2 if outcome is Tick.ACTION else None
        lateness = 0.005 if tick == 10 else 0.0002
        at = 100 + tick / FPS + lateness
        mean_age, step = None, None
        if outcome is Tick.ACTION:
            where = Where.START if tick in (0, 5, 61) else Where.SWITCH if tick % 10 == 0 else Where.WITHIN
            mean_age, step = 0.3, Step(where, 3.0 if where is Where.SWITCH else 1.0, 100.0 if tick > 5 else None)
        found.tick(TickRecord(tick, at, lateness, outcome, 90 - tick, age, mean_age, step), skipped)
        tick += 1 + skipped
    for number in range(4):
        found.sent(100.0 + number)
        stages = dict.fromkeys(Stage, 0.01)
        found.answered(RequestRecord(100.1 + number, 0.1 * (number + 1), stages))
    found.observation(Observation.FILTERED)
    found.lagged(101.0, 2.5)
    found.bytes_moved(40_000, 1_200)
    return found


@pytest.fixture
def trace() -> Trace:
    return three_seconds()


@pytest.mark.parametrize("kept", [1000, 20])
def test_a_run_is_counted_whole_however_long_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path, kept: int) -> None:
    """Ticks and requests are kept for a while, an hour at 30 a second; a run goes on for days."""
    whole = summarize(three_seconds(), {}, FPS)
    monkeypatch.setattr("longarm_edge.trace.KEPT_TICKS", kept)
    monkeypatch.setattr("longarm_edge.trace.KEPT_REQUESTS", max(1, kept // 10))
    trace = three_seconds()
    summary = summarize(trace, {}, FPS)
    assert summary.seconds == whole.seconds == pytest.approx(3.0, abs=0.01)
    assert (summary.ticks, summary.late_ticks) == (whole.ticks, whole.late_ticks)
    assert summary.idle_after_first_second == 1
    assert "ran 3.0 s, 28.0 actions/s" in render(summary)
    told = "times are those of the last 20 ticks and 2 chunks" in render(summary)
    assert told is (kept == 20)
    draw(trace, FPS, tmp_path / "run.png")


def test_the_summary_counts_what_happened(trace: Trace) -> None:
    summary = summarize(trace, {Drop.LATE: 7}, FPS)
    assert summary.ticks[Tick.ACTION] == 84
    assert summary.ticks[Tick.IDLE] == 3
    assert summary.ticks[Tick.SKIPPED] == 3
    assert summary.idle_after_first_second == 1, "what comes before does not count"
    assert summary.late_ticks == 1
    assert summary.latency is not None
    assert summary.latency.p50 == pytest.approx(0.25)
    assert summary.latency.maximum == pytest.approx(0.4)
    assert summary.drops[Drop.LATE] == 7
    assert summary.drops[Drop.EXPIRED] == 0


def test_the_summary_reads_as_a_table_in_milliseconds(trace: Trace) -> None:
    text = render(summarize(trace, {Drop.LATE: 7}, FPS))
    assert "84 action" in text
    assert "4 answered, 1 filtered" in text
    assert "7 late" in text
    assert "10 kB per observation" in text
    row = next(line for line in text.splitlines() if line.startswith("inference latency"))
    assert row.split()[2:] == ["250.0", "385.0", "397.0", "400.0"]


def test_the_summary_tells_how_smoothly_the_arm_was_told_to_move(trace: Trace) -> None:
    """Milliseconds alone do not show an arm that shakes."""
    summary = summarize(trace, {}, FPS)
    assert summary.steps[Where.SWITCH].p95 == 3
    assert summary.steps[Where.WITHIN].p95 == 1
    assert summary.switches_per_second == pytest.approx(7 / (87 / FPS))
    assert summary.jerk == 100
    text = render(summary)
    row = next(line for line in text.splitlines() if line.startswith("step at a switch"))
    assert row.split()[4:] == ["3.00"] * 4
    row = next(line for line in text.splitlines() if line.startswith("behind its command"))
    assert row.split()[3:] == ["2.50"] * 4
    assert "2.4 switches from chunk to chunk per second, jerk 100 rms per s³" in text
    row = next(line for line in text.splitlines() if line.startswith("  of all its parts"))
    assert row.split()[4] == "300.0"


def test_jerk_is_over_the_last_seconds(trace: Trace) -> None:
    assert trace.jerk(103.0) == pytest.approx(100)
    assert trace.jerk(120.0) == 0


def test_a_run_that_never_began_has_a_summary_too() -> None:
    empty = Trace(EdgeMetrics(CollectorRegistry()))
    summary = summarize(empty, {}, FPS)
    assert summary.seconds == 0
    assert summary.idle_after_first_second == 0
    assert "none" in render(summary)


def test_the_picture_is_written_where_it_should_be(trace: Trace, tmp_path) -> None:
    draw(trace, FPS, tmp_path / "new" / "run.png")
    with Image.open(tmp_path / "new" / "run.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 600


def test_observation_fps_is_over_the_last_seconds(trace: Trace) -> None:
    assert trace.observation_fps(103.0) == pytest.approx(4 / 5)
    assert trace.observation_fps(120.0) == 0


def test_what_the_service_says_while_it_loads_is_no_markup() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with opening(console, "session") as on_progress:
        on_progress(pb.Progress(stage=pb.PROGRESS_STAGE_FETCHING, message="[/models/act] [bold"))
    assert "fetching the policy: [/models/act] [bold" in console.export_text()


def test_a_log_gets_a_line_when_the_state_changes_and_not_every_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A robot that streams for weeks must not fill the journal."""
    monkeypatch.setattr("longarm_edge.console.PLAIN_INTERVAL", 0.001)
    states = iter([LinkState.STREAMING] * 30 + [LinkState.STALLED] * 30)
    over = threading.Event()

    def status() -> tuple[LinkState, str]:
        state = next(states, None)
        if state is None:
            over.set()
        return state or LinkState.STALLED, "queue 3"

    caplog.set_level("INFO", "longarm_edge.console")
    with StatusLine(Console(file=io.StringIO()), status):
        assert over.wait(10)
    assert caplog.messages == ["streaming  queue 3", "stalled  queue 3"]
