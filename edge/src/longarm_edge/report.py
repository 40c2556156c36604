"""What a run was like: a summary in words and numbers, and a picture."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longarm_edge.action_queue import Drop
from longarm_edge.metrics import Observation, Recorded, Stage, Tick
from longarm_edge.smoothness import Where
from longarm_edge.trace import LATE_SECONDS, RequestRecord, TickRecord, Trace

# More lines than this would be one grey block behind the queue
MERGES_DRAWN = 300


@dataclass(frozen=True)
class Quantiles:
    """Three points of a distribution, and its maximum."""

    p50: float
    p95: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, found: Sequence[float]) -> "Quantiles | None":
        """Returns the quantiles, or None of nothing."""
        if not found:
            return None
        values = np.asarray(found)
        p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99))
        return cls(float(p50), float(p95), float(p99), float(values.max()))


@dataclass(frozen=True)
class Summary:
    """A run in numbers.

    Attributes:
      seconds: From the first tick to the last.
      ticks: Ticks by outcome.
      late_ticks: Ticks more than LATE_SECONDS late.
      idle_after_first_second: Ticks without an action to execute (idle or stale), the first second left out.
      lateness: Of ticks.
      age: Of executed actions, of the newest part of each.
      mean_age: Of all parts of executed actions, each weighted with its share.
      steps: Of commands, by where in the plan; robot units.
      switches_per_second: Chunks that took over from another while the arm moved.
      jerk: Root mean square of the commands', robot units/s³; None of fewer than four.
      lag: How far a joint was seen from its command, robot units.
      latency: From capture to merge.
      stages: Its parts.
      observations: By outcome.
      drops: Actions never executed, by reason.
      reconnects: Sessions opened anew and connections found again.
      sent_bytes: To the service.
      received_bytes: From the service.
      recorded: Frames of the recording by what became of them; all 0 without one.
      kept_ticks: The last so many ticks are what lateness and age are over.
      kept_requests: The last so many chunks are what latency and stages are over.
    """

    seconds: float
    ticks: Mapping[Tick, int]
    late_ticks: int
    idle_after_first_second: int
    lateness: Quantiles | None
    age: Quantiles | None
    mean_age: Quantiles | None
    steps: Mapping[Where, Quantiles]
    switches_per_second: float
    jerk: float | None
    lag: Quantiles | None
    latency: Quantiles | None
    stages: Mapping[Stage, Quantiles]
    observations: Mapping[Observation, int]
    drops: Mapping[Drop, int]
    reconnects: int
    sent_bytes: int
    received_bytes: int
    recorded: Mapping[Recorded, int]
    kept_ticks: int
    kept_requests: int


def summarize(trace: Trace, drops: Mapping[Drop, int], fps: float) -> Summary:
    """Returns the run that trace recorded; distributions are over what it kept, counts over all of it."""
    ticks: list[TickRecord] = list(trace.ticks)
    requests: list[RequestRecord] = list(trace.requests)
    stages = {stage: Quantiles.of([r.stages[stage] for r in requests]) for stage in Stage}
    steps = [tick.step for tick in ticks if tick.step is not None]
    sizes = {where: Quantiles.of([step.size for step in steps if step.where is where]) for where in Where}
    jerks = np.array([step.jerk for step in steps if step.jerk is not None])
    switches = sum(step.where is Where.SWITCH for step in steps)
    return Summary(
        seconds=0.0 if trace.began_at is None else ticks[-1].at - trace.began_at + 1 / fps,
        ticks={outcome: trace.tick_counts[outcome] for outcome in Tick},
        late_ticks=trace.late_ticks,
        idle_after_first_second=trace.idle_after_first_second,
        lateness=Quantiles.of([t.lateness for t in ticks]),
        age=Quantiles.of([t.age for t in ticks if t.age is not None]),
        mean_age=Quantiles.of([t.mean_age for t in ticks if t.mean_age is not None]),
        steps={where: quantiles for where, quantiles in sizes.items() if quantiles is not None},
        switches_per_second=switches * fps / len(ticks) if ticks else 0.0,
        jerk=float(np.sqrt(np.mean(jerks**2))) if len(jerks) else None,
        lag=Quantiles.of([distance for _, distance in trace.lags]),
        latency=Quantiles.of([r.latency for r in requests]),
        stages={stage: quantiles for stage, quantiles in stages.items() if quantiles is not None},
        observations={outcome: trace.observation_counts[outcome] for outcome in Observation},
        drops={drop: drops.get(drop, 0) for drop in Drop},
        reconnects=trace.reconnect_counts.total(),
        sent_bytes=trace.sent_bytes,
        received_bytes=trace.received_bytes,
        recorded={outcome: trace.recorded_counts[outcome] for outcome in Recorded},
        kept_ticks=len(ticks),
        kept_requests=len(requests),
    )


def render(summary: Summary) -> str:
    """Returns the summary as text for a person, in milliseconds and kilobytes."""
    ticks, total = summary.ticks, sum(summary.ticks.values())
    rate = (ticks[Tick.ACTION] + ticks[Tick.CLAMPED]) / summary.seconds if summary.seconds else 0.0
    answered = summary.observations[Observation.ANSWERED]
    kept = f"{summary.kept_ticks} ticks and {summary.kept_requests} chunks"
    is_cut = summary.kept_ticks < total - ticks[Tick.SKIPPED] or summary.kept_requests < answered
    lines = [
        f"ran {summary.seconds:.1f} s, {rate:.1f} actions/s",
        f"ticks         {total}: {_counts(ticks)}; {summary.late_ticks} later than {LATE_SECONDS * 1000:.0f} ms",
        f"observations  {_counts(summary.observations)}",
        f"actions       never executed: {_counts(summary.drops)}",
        f"traffic       {summary.sent_bytes / 1e3:.0f} kB sent, {summary.received_bytes / 1e3:.0f} kB received"
        + (f" ({summary.sent_bytes / 1e3 / answered:.0f} kB per observation)" if answered else ""),
        f"reconnects    {summary.reconnects}",
        *([f"recording     {_counts(summary.recorded)}"] if any(summary.recorded.values()) else []),
        "",
        f"{'ms':<22}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}",
        _row("tick lateness", summary.lateness),
        _row("action age", summary.age),
        *([_row("  of all its parts", summary.mean_age)] if summary.mean_age != summary.age else []),
        _row("inference latency", summary.latency),
        *(_row(f"  {stage.value}", quantiles) for stage, quantiles in summary.stages.items()),
        *_motion(summary),
        *([f"times are those of the last {kept}"] if is_cut else []),
    ]
    return "\n".join(line for line in lines if line is not None)


def check_picture(path: Path) -> None:
    """Returns if a picture can be written to path, which is left as it is; the directory around it is made.

    Raises:
      ValueError: The end of its name is no format that can be drawn.
      OSError: path cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # pgf is drawn by a TeX that hardly any robot's laptop has
    known = FigureCanvasAgg(Figure()).get_supported_filetypes().keys() - {"pgf"}
    if _format(path) not in known:
        raise ValueError(f"Expected a name that ends in one of {', '.join(sorted(known))} but found {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.open("ab").close()
    else:
        tempfile.TemporaryFile(dir=path.parent).close()


def draw(trace: Trace, fps: float, path: Path) -> None:
    """Writes a picture of a run over time to path (any format of matplotlib).

    Queue depth, action age, the steps of commands and tick lateness.

    It shows the ticks that trace kept.

    Raises:
      OSError: path cannot be written.
    """
    # Imported here: a second that a run without a picture does not pay
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ticks: list[TickRecord] = list(trace.ticks)
    requests: list[RequestRecord] = list(trace.requests)
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    depth, age, step, lateness = figure.subplots(4, 1, sharex=True)
    start = trace.began_at or 0.0
    at = [t.at - start for t in ticks]
    depth.plot(at, [t.depth for t in ticks], color="tab:blue", linewidth=1.2)
    merged = [r.at - start for r in requests if ticks and r.at >= ticks[0].at]
    if len(merged) <= MERGES_DRAWN:
        depth.vlines(merged, 0, 1, transform=depth.get_xaxis_transform(),
                     color="0.85", linewidth=1, zorder=0, label="chunk merged")  # fmt: skip
    idle = [t.at - start for t in ticks if t.outcome in (Tick.IDLE, Tick.STALE)]
    depth.plot(idle, [0] * len(idle), "|", color="tab:red", markersize=14, label="idle tick")
    depth.set_ylabel("queue depth\n(actions)")
    depth.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8)
    age.plot(at, [np.nan if t.age is None else t.age * 1000 for t in ticks], color="tab:green", linewidth=1.2)
    if any(t.mean_age != t.age for t in ticks):
        mean_age = [np.nan if t.mean_age is None else t.mean_age * 1000 for t in ticks]
        age.plot(at, mean_age, color="tab:green", linewidth=1.0, alpha=0.45, label="of all its parts")
        age.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    age.set_ylabel("action age\n(ms)")
    _draw_steps(step, ticks, start)
    lateness.plot(at, [t.lateness * 1000 for t in ticks], color="tab:orange", linewidth=0.9)
    lateness.axhline(LATE_SECONDS * 1000, color="0.5", linewidth=0.8, linestyle="--")
    lateness.set_ylabel("tick lateness\n(ms)")
    lateness.set_ylim(0, max([2.5, *(t.lateness * 1100 for t in ticks)]))
    lateness.set_xlabel("time (s)")
    for axes in (depth, age, step, lateness):
        axes.grid(alpha=0.25)
        axes.margins(x=0)
    for axes in (depth, age, step):
        axes.set_ylim(bottom=0)
    counts = trace.tick_counts
    total = counts.total() - counts[Tick.SKIPPED]
    figure.suptitle(
        f"{total} ticks at {fps:g} per second, {counts[Tick.ACTION] + counts[Tick.CLAMPED]} actions, "
        f"{trace.observation_counts[Observation.ANSWERED]} chunks"
        + (f"; the last {len(ticks)} ticks" if len(ticks) < total else ""),
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format=_format(path))


def _draw_steps(axes: Any, ticks: Sequence[TickRecord], start: float) -> None:
    moves = [(t.at - start, t.step) for t in ticks if t.step is not None]
    sizes = [np.nan if t.step is None else t.step.size for t in ticks]
    axes.plot([t.at - start for t in ticks], sizes, color="tab:purple", linewidth=0.9)
    switches = [(at, step.size) for at, step in moves if step.where is Where.SWITCH]
    if len(switches) <= MERGES_DRAWN:
        axes.plot(*zip(*switches, strict=True) if switches else ([], []), ".", color="tab:red", markersize=5,
                  label="where chunks meet")  # fmt: skip
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    axes.set_ylabel("command's step\n(robot units)")


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower() or "png"


def _counts(
    counts: Mapping[Tick, int] | Mapping[Observation, int] | Mapping[Drop, int] | Mapping[Recorded, int],
) -> str:
    return ", ".join(f"{count} {name.value}" for name, count in counts.items() if count) or "none"


def _motion(summary: Summary) -> list[str]:
    """Returns how smoothly the arm was told to move; nothing if it was not."""
    if not summary.steps:
        return []
    rows = {
        "step within a chunk": summary.steps.get(Where.WITHIN),
        "step at a switch": summary.steps.get(Where.SWITCH),
        "step at a start": summary.steps.get(Where.START),
        "behind its command": summary.lag,
    }
    jerk = "" if summary.jerk is None else f", jerk {summary.jerk:.0f} rms per s³"
    return [
        "",
        f"{'robot units':<22}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}",
        *(_row(name, quantiles, 1, 2) for name, quantiles in rows.items() if quantiles is not None),
        f"{summary.switches_per_second:.1f} switches from chunk to chunk per second{jerk}",
    ]


def _row(name: str, quantiles: Quantiles | None, scale: float = 1000, digits: int = 1) -> str:
    if quantiles is None:
        return f"{name:<22}{'-':>9}{'-':>9}{'-':>9}{'-':>9}"
    values = (quantiles.p50, quantiles.p95, quantiles.p99, quantiles.maximum)
    return f"{name:<22}" + "".join(f"{value * scale:9.{digits}f}" for value in values)
