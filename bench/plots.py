"""Pictures of a result."""

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.analysis import executed
from bench.cells import Event, Measured
from bench.report import Row, pairs

COLOURS = {"Longarm": "#1f6f8b", "LeRobot async": "#d1793b"}
GREY = "#555555"


def draw(rows: list[Row], logs: list[Measured], directory: Path, name: str) -> list[str]:
    """Writes the pictures for which there are rows and returns their file names.

    Args:
      rows: Of the table.
      logs: What each came from, in the same order.
      directory: Where to.
      name: What file names begin with.
    """
    mpl.use("Agg")
    made = []
    if paired := pairs(rows):
        made.append(_save(_links(paired), directory, f"{name}-links.png"))
    outages = [(row, log) for row, log in zip(rows, logs, strict=True) if log.outage and not log.failure]
    for event in filter(None, Event):
        chosen = [pair for pair in outages if pair[0].cell.event is event]
        if chosen:
            made.append(
                _save(_timelines(event, chosen), directory, f"{name}-{event.name.lower().replace('_', '-')}.png")
            )
    return made


def _links(paired: list[tuple[Row, Row]]) -> Figure:
    """Returns bars by link: actions a second, first action against the floor, bytes per observation."""
    figure = Figure(figsize=(11, 1.6 + 0.55 * len(paired)), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ("actions per second", "observation to first action, p95", "sent per observation")
    labels = [
        f"{ours.cell.link.name.replace(', ', chr(10))}\n{'tunnel' if ours.cell.through_ssh else 'direct'}"
        for ours, _ in paired
    ]
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_yticks(range(len(labels)), labels if panel is panels[0] else [], fontsize=8)
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="x", labelsize=8)
    for side, peer in enumerate(COLOURS):
        chosen = [pair[side] for pair in paired]
        at = np.arange(len(chosen)) + (side - 0.5) * 0.36
        found = [row.figures for row in chosen]
        for panel, values in zip(
            panels,
            (
                [f.actions_per_second if f else 0 for f in found],
                [f.first_p95_ms if f else math.nan for f in found],
                [row.observation_kilobytes for row in chosen],
            ),
            strict=True,
        ):
            panel.barh(at, values, 0.34, color=COLOURS[peer], label=peer)
        for place, row in zip(at, chosen, strict=True):
            panels[1].plot([row.floor_ms] * 2, [place - 0.17, place + 0.17], color="black", linewidth=2)
    panels[1].plot([], [], color="black", linewidth=2, label="floor of the link")
    panels[0].set_xlim(0, 31)
    panels[0].set_xlabel("of 30", fontsize=8)
    _logarithmic(panels[1], "ms", 50, (100, 300, 1000, 3000))
    _logarithmic(panels[2], "kB", 5, (10, 100, 1000))
    handles, names = panels[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _logarithmic(panel: Axes, unit: str, low: float, ticks: tuple[int, ...]) -> None:
    panel.set_xscale("log")
    panel.set_xlim(left=low)
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel(unit, fontsize=8)


def _timelines(event: Event, chosen: list[tuple[Row, Measured]]) -> Figure:
    """Returns one joint's command over time for each peer, the outage shaded."""
    figure = Figure(figsize=(9, 1.6 * len(chosen) + 0.6), layout="constrained")
    panels: list[Axes] = list(figure.subplots(len(chosen), 1, sharex=True, sharey=True, squeeze=False)[:, 0])
    for panel, (row, log) in zip(panels, chosen, strict=True):
        assert log.outage is not None
        begun, ended = log.outage
        run = executed(log.events).between(log.begun, log.ended)
        panel.axvspan(0, ended - begun, color="#dddddd")
        panel.plot(run.at - begun, run.joints[:, 0], ".", markersize=2, color=COLOURS[row.cell.peer])
        way = ", through the SSH tunnel" if row.cell.through_ssh else ""
        panel.set_title(f"{row.cell.peer}{way}", fontsize=10, loc="left")
        panel.set_ylabel("joint, deg", fontsize=8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"seconds; grey: {event.value}. Each dot is a command.", fontsize=8, color=GREY)
    return figure


def _save(figure: Figure, directory: Path, name: str) -> str:
    figure.savefig(directory / name, dpi=110)
    return name
