"""Writes the page of results."""

from pathlib import Path

from bench.cells import Event
from bench.peers import FPS
from bench.report import BAR_FACTOR, COLUMNS, OUTAGE_COLUMNS, Row, markdown, ratios

NOTES = f"""\
Everything is read from the robot's side: each observation and each command with the monotonic clock, and bytes at the
network interface. The policy answers with the number of the observation, so that every command tells where it comes
from. Both peers are as installed, with their own defaults; LeRobot's server is told the bench's type of policy.

- **missing ticks**: periods of 1/{FPS} s in the window without a command.
- **late**: how much longer than 1/{FPS} s it was from command to command.
- **obs → first action**: from the beginning of an observation to the first command that rests on it.
- **action age**: from the beginning of the newest observation behind a command to that command.
- **floor**: RTT + this peer's own bytes / rate + inference. No peer can be faster; a command waits up to a tick on top.
- **kB per observation**: bytes that left the robot's interface, headers and repeats included, per observation taken.
- **step at switch**: largest joint's step from the last command of one chunk to the next one's first.
- **edge CPU**: of one core, of the robot's half, the robot and the tunnel's local process included.
- TCP is cubic with slow start after idle, Linux's defaults. The SSH tunnel is Longarm's own, and for LeRobot a plain
  `ssh -N -L`.
"""


def write_page(file: Path, about: dict[str, str], rows: list[Row], pictures: list[str]) -> None:
    """Writes file: tables, factors, pictures and what they mean."""
    plain = [row for row in rows if row.cell.event is Event.NONE and row.cell.policy == "emulated"]
    sections = [
        "# Longarm and LeRobot's async inference over the same links",
        "Made by `make bench`. Do not edit.",
        "\n".join(f"- {key}: {value}" for key, value in about.items()),
        *_section("## What the robot got", markdown([row for row in plain if not row.cell.variant], COLUMNS)),
        *_section("## Longarm over LeRobot", ratios(rows)),
        *_bars(plain),
        *_section(
            "## When to ask: auto against fixed thresholds", markdown(_replan(plain), COLUMNS) if _replan(plain) else []
        ),
        *_section("## A real ACT in place of the wait", _table([r for r in rows if r.cell.policy == "act"])),
        *(part for event in (Event.SILENCE, Event.RESTART) for part in _outages(rows, event)),
        *([f"![{Path(name).stem}]({name})" for name in pictures]),
        "## What the columns mean",
        NOTES.strip(),
    ]
    file.write_text("\n\n".join(sections) + "\n")


def _section(heading: str, lines: list[str]) -> list[str]:
    return [heading, "\n".join(lines)] if lines else []


def _table(rows: list[Row]) -> list[str]:
    return markdown(rows, COLUMNS) if rows else []


def _replan(plain: list[Row]) -> list[Row]:
    """Returns Longarm's own rows by link, the default first, if there are any others than that."""
    ours = [row for row in plain if row.cell.peer == "Longarm" and not row.cell.through_ssh]
    names = list(dict.fromkeys(row.cell.link.name for row in ours if row.cell.variant))
    return [row for name in names for row in ours if row.cell.link.name == name]


def _outages(rows: list[Row], event: Event) -> list[str]:
    chosen = [row for row in rows if row.cell.event is event]
    return _section(f"## {event.value.capitalize()}", markdown(chosen, OUTAGE_COLUMNS) if chosen else [])


def _bars(plain: list[Row]) -> list[str]:
    """Returns which of Longarm's rows keep what was promised."""
    ours = [row for row in plain if row.cell.peer == "Longarm" and not row.cell.variant and row.figures]
    lines = []
    for row in ours:
        found = row.figures
        assert found is not None
        way = "SSH tunnel" if row.cell.through_ssh else "direct"
        checks = (
            found.missing_ticks == 0,
            found.late_p99_ms <= 2,
            row.meets_latency_bar(FPS),
        )
        marks = " | ".join("yes" if check else "**no**" for check in checks)
        lines.append(f"| {row.cell.link.name} | {way} | {marks} | {BAR_FACTOR * row.floor_ms + 1000 / FPS:.0f} ms |")
    heading = [
        "| link | way | no missing tick | late p99 ≤ 2 ms | first action p95 within bar | bar |",
        "| --- | --- | --- | --- | --- | ---: |",
    ]
    return _section("## Bars", [*heading, *lines]) if lines else []
