"""What a person sees."""

import io
import logging

import pytest
from rich.console import Console

from longarm_edge.provision.narrator import Narrator


def test_a_terminal_shows_steps_that_are_done() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with Narrator(console).step("sending [the] policy") as telling:
        telling.progress(50_000_000, 100_000_000)
        telling.line("Collecting torch [red]")
    assert "✓ sending [the] policy" in console.export_text()


def test_a_step_that_fails_is_not_ticked_off() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with pytest.raises(OSError, match="no"), Narrator(console).step("sending"):
        raise OSError("no")
    assert "✓" not in console.export_text()


def test_elsewhere_the_log_has_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("longarm_edge.provision.narrator.PLAIN_INTERVAL", 0)
    with Narrator(Console(file=io.StringIO())).step("installing") as telling:
        telling.line("Collecting torch")
        telling.line("Requirement already satisfied: numpy")
        telling.progress(50_000_000, 100_000_000)
    assert [record.message for record in caplog.records] == ["installing", "  Collecting torch", "  50 of 100 MB"]
