"""From what was measured to what people read: rows, a table in Markdown, and JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from bench.analysis import Figures, Outage
from bench.cells import Cell

BYTES_PER_KILOBYTE = 1e3
# Of the link's counters: one observation's headers and acknowledgements cannot be told from the next one's
BAR_FACTOR = 1.25


@dataclass(frozen=True)
class Row:
    """A cell and its figures.

    Attributes:
      cell: What ran.
      figures: What the robot got; None with a failure.
      uplink_mbit: Mbit/s that left the robot's place.
      observation_kilobytes: Bytes that left the robot's place per observation that was taken, kB.
      reply_kilobytes: Bytes that came to the robot's place per observation, kB.
      cpu_percent: Of one core, robot's half and tunnel.
      cpu_ms_per_chunk: The same per chunk that was executed.
      floor_ms: RTT + bytes / rate + inference.
      outage: What came of an outage, if the cell had one.
      failure: Why there are no figures.
    """

    cell: Cell
    figures: Figures | None
    uplink_mbit: float = math.nan
    observation_kilobytes: float = math.nan
    reply_kilobytes: float = math.nan
    cpu_percent: float = math.nan
    cpu_ms_per_chunk: float = math.nan
    floor_ms: float = math.nan
    outage: Outage | None = None
    failure: str = ""

    @property
    def floor_ratio(self) -> float:
        """Median time from observation to first action over the floor."""
        return self.figures.first_p50_ms / self.floor_ms if self.figures else math.nan

    def meets_latency_bar(self, fps: float) -> bool:
        """Returns whether the 95th percentile is within BAR_FACTOR floors and a tick."""
        return self.figures is not None and self.figures.first_p95_ms <= BAR_FACTOR * self.floor_ms + 1000 / fps


@dataclass(frozen=True)
class Column:
    """One column of the table: its heading, and how a row is shown in it."""

    heading: str
    values: tuple[str, ...]
    digits: int = 0
    separator: str = " / "


COLUMNS = (
    Column("actions/s", ("actions_per_second",), 1),
    Column("missing ticks", ("missing_ticks",)),
    Column("late p50/p99/max, ms", ("late_p50_ms", "late_p99_ms", "late_max_ms"), 1),
    Column("obs → first action p50/p95, ms", ("first_p50_ms", "first_p95_ms")),
    Column("floor, ms", ("floor_ms",)),
    Column("in floors", ("floor_ratio",), 2),
    Column("action age mean/p95, ms", ("age_mean_ms", "age_p95_ms")),
    Column("chunks/s", ("chunks_per_second",), 1),
    Column("kB per observation", ("observation_kilobytes",)),
    Column("uplink, Mbit/s", ("uplink_mbit",), 1),
    Column("step at switch p50/max, deg", ("switch_p50_deg", "switch_max_deg"), 1),
    Column("edge CPU, %", ("cpu_percent",), 1),
    Column("CPU ms per chunk", ("cpu_ms_per_chunk",)),
)
OUTAGE_COLUMNS = (
    Column("moved on for, s", ("played",), 1),
    Column("stood still for at most, s", ("still",), 1),
    Column("moves again after, s", ("moving_again",), 2),
    Column("first fresh action after, s", ("resumed",), 2),
)


def number(value: Any, digits: int) -> str:
    """Returns value for people."""
    if value is None:
        return "never"
    return "-" if isinstance(value, float) and math.isnan(value) else f"{value:.{digits}f}"


def cells_of(row: Row, columns: tuple[Column, ...]) -> list[str]:
    """Returns the texts of one row."""
    found = []
    for column in columns:
        values = [
            next(getattr(part, name) for part in (row.outage, row.figures, row) if hasattr(part, name))
            for name in column.values
        ]
        found.append(column.separator.join(number(value, column.digits) for value in values))
    return found


def markdown(rows: list[Row], columns: tuple[Column, ...]) -> list[str]:
    """Returns a table, one line each."""
    lines = [
        f"| link | way | peer | {' | '.join(column.heading for column in columns)} |",
        "|" + " --- |" * 3 + " ---: |" * len(columns),
    ]
    for row in rows:
        cell = row.cell
        peer = f"**{cell.peer}**" if cell.peer == "Longarm" else cell.peer
        peer += f", {cell.variant}" if cell.variant else ""
        way = "SSH tunnel" if cell.through_ssh else "direct"
        shown = cells_of(row, columns) if not row.failure else ["failed"] + [""] * (len(columns) - 1)
        lines.append(f"| {cell.link.name} | {way} | {peer} | {' | '.join(shown)} |")
    return lines


def ratios(rows: list[Row]) -> list[str]:
    """Returns what Longarm makes of the same link, as factors, one line each; nothing without pairs."""
    lines = [
        "| link | way | actions/s | obs → first action p50 | p95 | bytes per observation | action age mean | CPU |",
        "|" + " --- |" * 2 + " ---: |" * 6,
    ]
    for ours, stock in pairs(rows):
        a, b = ours.figures, stock.figures
        if a is None or b is None:
            continue
        factors = (
            f"{factor(a.actions_per_second, b.actions_per_second)} times",
            f"1/{factor(b.first_p50_ms, a.first_p50_ms)}",
            f"1/{factor(b.first_p95_ms, a.first_p95_ms)}",
            f"1/{factor(stock.observation_kilobytes, ours.observation_kilobytes)}",
            f"{factor(a.age_mean_ms, b.age_mean_ms)} times",
            f"{factor(ours.cpu_percent, stock.cpu_percent)} times",
        )
        way = "SSH tunnel" if ours.cell.through_ssh else "direct"
        lines.append(f"| {ours.cell.link.name} | {way} | {' | '.join(factors)} |")
    return lines if len(lines) > 2 else []


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Returns each row of Longarm's defaults with LeRobot's on the same link and way."""
    plain = [row for row in rows if row.cell.is_plain]
    stock = {(row.cell.link.name, row.cell.through_ssh): row for row in plain if row.cell.peer != "Longarm"}
    ours = [row for row in plain if row.cell.peer == "Longarm"]
    keys = [(row.cell.link.name, row.cell.through_ssh) for row in ours]
    return [(row, stock[key]) for row, key in zip(ours, keys, strict=True) if key in stock]


def factor(a: float, b: float) -> str:
    """Returns a / b for people."""
    ratio = a / b if b else math.nan
    return number(ratio, 0 if ratio >= 10 else 1 if ratio >= 1 else 2)


def as_json(row: Row) -> dict[str, Any]:
    """Returns row for a file."""
    cell = asdict(row.cell) | {"link": row.cell.link.name, "event": row.cell.event.value}
    shown = asdict(row) | {"cell": cell, "floor_ratio": row.floor_ratio}
    return {key: _finite(value) for key, value in shown.items()}


def _finite(value: Any) -> Any:
    """Returns value without NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
