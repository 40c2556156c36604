"""The page of results and its pictures, from rows that were made up."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import cells, row
from bench.analysis import Figures, Outage
from bench.cells import Cell, Event, Measured
from bench.links import LINKS
from bench.page import write_page
from bench.plots import draw
from bench.report import Row, as_json, pairs
from bench.robot_log import COMMANDED, EVENT, OBSERVED

OURS = Figures(15, 30.0, 0, 0.1, 0.4, 1.2, 166.0, 200.0, 233.0, 300.0, 6.0, 6.2, 1.6, 2.4, 1.0)
STOCK = Figures(15, 15.0, 225, 0.1, 420.0, 434.0, 800.0, 900.0, 910.0, 1200.0, 1.2, 1.2, 1.8, 2.4, 1.8)


def rows() -> list[Row]:
    link = LINKS["40/50"]
    common = {"uplink_mbit": 1.0, "reply_kilobytes": 6.0, "cpu_percent": 4.0, "cpu_ms_per_chunk": 7.0}
    return [
        Row(Cell("Longarm", link), OURS, observation_kilobytes=20.0, floor_ms=144.0, **common),
        Row(Cell("LeRobot async", link), STOCK, observation_kilobytes=1840.0, floor_ms=438.0, **common),
        Row(Cell("Longarm", link, True), None, failure="no action: it fell over"),
        Row(Cell("Longarm", link, variant="continuous"), OURS, floor_ms=144.0, **common),
        Row(Cell("LeRobot async", link, event=Event.RESTART), STOCK, outage=Outage(0.0, 43.2, None, None)),
    ]


def test_the_page_has_the_factors_the_bars_and_the_failures(tmp_path: Path) -> None:
    write_page(tmp_path / "README.md", {"when": "now"}, rows(), ["x.png"])
    text = (tmp_path / "README.md").read_text()
    assert "| RTT 40 ms, 50 Mbit/s up | direct | **Longarm** | 30.0 | 0 | 0.1 / 0.4 / 1.2 | 166 / 200 | 144 |" in text
    assert "| RTT 40 ms, 50 Mbit/s up | direct | 2.0 times | 1/4.8 | 1/4.5 | 1/92 |" in text
    assert "| RTT 40 ms, 50 Mbit/s up | direct | auto | 213 ms | yes | yes | yes | yes |  |" in text
    assert "| SSH tunnel | **Longarm** | failed |" in text
    assert "| LeRobot async | 0.0 | 43.2 | never | never |" in text
    assert "![x](x.png)" in text


def test_variants_are_not_paired() -> None:
    assert [(ours.cell.name, stock.cell.name) for ours, stock in pairs(rows())] == [
        (rows()[0].cell.name, rows()[1].cell.name)
    ]


def test_results_are_json_without_nan() -> None:
    text = json.dumps([as_json(one) for one in rows()], allow_nan=False)
    assert json.loads(text)[0]["figures"]["missing_ticks"] == 0
    assert json.loads(text)[3]["observation_kilobytes"] is None


def test_a_row_counts_bytes_per_observation_and_adds_up_its_floor() -> None:
    observations = [(OBSERVED, at, at, number + 1, (0,) * 6) for number, at in enumerate(np.arange(0, 10, 0.5))]
    commands = [(COMMANDED, at, at, int(at / 0.5) + 1, (0,) * 6) for at in np.arange(0.2, 10, 1 / 30)]
    log = np.array(sorted(observations + commands, key=lambda event: event[1]), EVENT)
    measured = Measured(log, 1.0, 9.0, up_bytes=16 * 25_000, down_bytes=16 * 5_000, cpu_seconds=0.4)
    found = row(Cell("Longarm", LINKS["40/10"]), measured)
    assert found.observation_kilobytes == pytest.approx(25)
    assert found.uplink_mbit == pytest.approx(0.4)
    assert found.cpu_percent == pytest.approx(5)
    assert found.cpu_ms_per_chunk == pytest.approx(25, rel=0.1)
    assert found.floor_ms == pytest.approx(40 + 20 + 0.4 + 100)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    commands = [(COMMANDED, at, at, 0, (at, 0, 0, 0, 0, 0)) for at in np.arange(0, 10, 1 / 30)]
    log = Measured(np.array(commands, EVENT), 1.0, 9.0, outage=(3.0, 5.0))
    made = draw(rows(), [log] * len(rows()), tmp_path, "x")
    assert made == ["x-links.png", "x-restart.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in made)


def test_what_runs_follows_what_was_asked_for() -> None:
    names = ["loopback", "120/20"]
    plain = cells(["links"], names, ssh=True)
    assert len(plain) == 2 * 2 * 2
    assert len(cells(["links"], names, ssh=False)) == 4
    outages = cells(["outages"], names, ssh=True)
    assert {cell.event for cell in outages} == set(Event) - {Event.NONE}
    assert all(cell.link.emulated for cell in outages)  # a veth pair cannot be silenced
    assert cells(["outages"], ["loopback"], ssh=True) == []
