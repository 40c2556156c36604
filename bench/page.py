"""Writes the page of results."""

from pathlib import Path

from bench.cells import Event
from bench.peers import FPS
from bench.report import BAR_FACTOR, COLUMNS, OUTAGE_COLUMNS, Row, markdown, ratios

HEAD = """\
Made by `make bench`. Do not edit. Beside it, each by a command of its own:
[what a server adds to its policy](service.md), [what frames cost on their way](codec.md),
[several robots on one server](batching.md), [bfloat16, compiling and batches](forward.md) and
[the step where chunks meet](rtc.md)."""
MOST_LATE_MS = 2.0
LEAST_BYTES_FACTOR = 20
NOTES = f"""\
Everything is read from the robot's side: each observation and each command with the monotonic clock, and bytes at the
network interface. The policy answers with the number of the observation, so that every command tells where it comes
from. Both peers are as installed, with their own defaults; LeRobot's server is told the bench's type of policy.

- **missing ticks**: periods of 1/{FPS} s in the window without a command, or how many commands are too few for it: the
  larger of the two.
- **late**: how much longer than 1/{FPS} s it was from command to command.
- **obs → first action**: from the beginning of an observation to the first command that rests on it.
- **action age**: from the beginning of the newest observation behind a command to that command.
- **floor**: RTT + this peer's own bytes / rate + inference. No peer can be faster; a command waits up to a tick on top.
- **bars**: first action within {BAR_FACTOR:g} floors and one tick; bytes and processor time against LeRobot on the same
  link and way.
- **kB per observation**: bytes that left the robot's interface, headers and repeats included, per observation taken.
- **step at switch**: largest joint's step from the last command of one chunk to the next one's first.
- **Outages**: times in the last two columns count from the link's return, or from when the server listens again. Its
  start takes some seconds, in grey in the picture.
- **edge CPU**: of one core, of the robot's half, the robot and the tunnel's local process included.
- Longarm sends frames as JPEG, LeRobot as they are. That is where the bytes go.
- The SSH tunnel is Longarm's own, and for LeRobot a plain `ssh -N -L`.
"""


def write_page(file: Path, about: dict[str, str], rows: list[Row], pictures: list[str]) -> None:
    """Writes file: tables, factors, pictures and what they mean."""
    plain = [row for row in rows if row.cell.event is Event.NONE and row.cell.policy == "emulated"]
    sections = [
        "# Longarm and LeRobot's async inference over the same links",
        HEAD,
        "\n".join(f"- {key}: {value}" for key, value in about.items()),
        *_section("## What the robot got", markdown([row for row in plain if not row.cell.variant], COLUMNS)),
        *_section("## Longarm over LeRobot", ratios(rows)),
        *_bars(plain),
        *_section(
            "## When to ask: auto against fixed thresholds", markdown(_replan(plain), COLUMNS) if _replan(plain) else []
        ),
        *_section("## A real ACT in place of the wait", _table([r for r in rows if r.cell.policy == "act"])),
        *(part for event in Event if event for part in _outages(rows, event)),
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
    """Returns Longarm's own rows by link and way, the default first, where there are others than that."""
    ours = [row for row in plain if row.cell.peer == "Longarm"]
    ways = dict.fromkeys((row.cell.link.name, row.cell.through_ssh) for row in ours if row.cell.variant)
    return [row for way in ways for row in ours if (row.cell.link.name, row.cell.through_ssh) == way]


def _outages(rows: list[Row], event: Event) -> list[str]:
    chosen = [row for row in rows if row.cell.event is event]
    return _section(f"## {event.value.capitalize()}", markdown(chosen, OUTAGE_COLUMNS) if chosen else [])


def _bars(plain: list[Row]) -> list[str]:
    """Returns which of Longarm's rows keep what was promised."""
    stock = {(row.cell.link.name, row.cell.through_ssh): row for row in plain if row.cell.peer != "Longarm"}
    lines = []
    for row in plain:
        found = row.figures
        if row.cell.peer != "Longarm" or found is None:
            continue
        other = stock.get((row.cell.link.name, row.cell.through_ssh))
        checks: list[bool | None] = [
            found.missing_ticks == 0,
            found.late_p99_ms <= MOST_LATE_MS,
            row.meets_latency_bar(FPS),
            row.observation_kilobytes * LEAST_BYTES_FACTOR <= other.observation_kilobytes if other else None,
            row.cpu_percent <= other.cpu_percent if other and not row.cell.link.emulated else None,
        ]
        shown = " | ".join({True: "yes", False: "**no**", None: ""}[check] for check in checks)
        way = "SSH tunnel" if row.cell.through_ssh else "direct"
        bar = f"{BAR_FACTOR * row.floor_ms + 1000 / FPS:.0f} ms"
        lines.append(f"| {row.cell.link.name} | {way} | {row.cell.variant or 'auto'} | {bar} | {shown} |")
    names = ["no missing tick", "late p99 ≤ 2 ms", "first action p95 within bar", "bytes ≤ 1/20", "CPU ≤ LeRobot's"]
    heading = [
        f"| link | way | replan | latency bar | {' | '.join(names)} |",
        "|" + " --- |" * 3 + " ---: |" + " --- |" * len(names),
    ]
    return _section("## Bars", [*heading, *lines]) if lines else []
