"""The picture of a run: where it cannot be written, and what that costs."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from longarm_edge.lerobot_robot import LeRobotRobot
from longarm_edge.metrics import Tick
from longarm_edge.settings import EdgeSettings
from longarm_edge.told_run import run_to_exit_code
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError


@pytest.fixture
def run(service, arm, monkeypatch):
    """Returns a function that runs as the command does, with a picture at the end."""
    monkeypatch.setattr("longarm_edge.lerobot_robot.make_robot_from_config", lambda _: arm)

    def run(plot: Path, shown: io.StringIO | None = None):
        values = {"server_address": service.address, "pretrained_name_or_path": "scripted", "metrics_port": 0}
        settings = EdgeSettings(_env_file=None, duration=0.5, plot=plot, **values)
        console = Console(file=shown or io.StringIO(), width=40)
        return run_to_exit_code(settings, LeRobotRobot(arm.config, settings.fps), console)

    return run


@pytest.mark.parametrize(
    ("plot", "words"),
    [
        ("file/run.png", "file"),
        ("directory.png", "directory"),
        ("run.pgf", "Expected a name that ends in one of"),
        ("run.xyz", "Expected a name that ends in one of .*png.* but found .*run.xyz"),
    ],
)
def test_one_that_cannot_be_written_is_refused_before_the_robot_is_touched(
    run, arm, tmp_path, plot: str, words: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory.png").mkdir()
    with pytest.raises(ConfigurationError, match=rf"LONGARM_EDGE_PLOT \(--plot\).*{words}"):
        run(tmp_path / plot)
    assert not arm.commands


def test_one_that_fails_after_all_costs_a_line_and_nothing_else(run, arm, caplog) -> None:
    result = run(Path("/dev/full"))
    assert result.exit_code == exit_codes.DONE
    assert result.summary.ticks[Tick.ACTION] > 5
    assert any("no picture" in line and "No space left" in line for line in caplog.messages)


def test_it_is_written_where_it_should_be_and_nothing_beside_it(run, tmp_path) -> None:
    run(tmp_path / "new" / "picture")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture"]


def test_the_summary_and_the_path_are_not_broken_into_pieces(run, tmp_path) -> None:
    """Where no terminal tells its width it is 80, and a line of counts is longer than that."""
    shown, path = io.StringIO(), tmp_path / f"{'long-' * 10}name.png"
    run(path, shown)
    lines = shown.getvalue().splitlines()
    assert f"picture: {path}" in lines
    assert any(line.startswith("ticks") and line.endswith("later than 2 ms") for line in lines)
