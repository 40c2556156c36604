"""A displayed run against a real service: Rerun's own reader finds in the file, or its server gets, what happened."""

import socket
import subprocess
import time
from pathlib import Path

import pytest
import rerun_cli

from longarm_edge.metrics import Tick
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError
from tests.e2e.conftest import until

pytestmark = pytest.mark.timeout(120)

# The program itself: the command of that name is a wrapper, which would leave it behind when it is stopped
RERUN = Path(rerun_cli.__file__).with_name("rerun")


def printed(path: Path) -> str:
    """Returns what Rerun's own tool finds in a file."""
    return subprocess.run([RERUN, "rrd", "print", "-vv", path], capture_output=True, text=True, check=True).stdout


def test_a_file_shows_the_run(edge, arm, tmp_path) -> None:
    path = tmp_path / "run.rrd"
    result = edge(duration=2.0, display=str(path)).go()
    assert result.exit_code == exit_codes.DONE
    assert result.summary.ticks[Tick.ACTION] + result.summary.ticks[Tick.SKIPPED] == 60
    text = printed(path)
    for entity in (
        "/cameras/front",
        "/joints/pan.pos/state",
        "/joints/pan.pos/target",
        "/queue/depth",
        "/delay/latency",
    ):
        assert entity in text, entity


def test_a_viewer_elsewhere_gets_the_run(edge, tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    copy = tmp_path / "seen.rrd"
    viewer = subprocess.Popen([RERUN, "--bind", "127.0.0.1", "--port", str(port), "--save", copy])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the viewer never answered"
                time.sleep(0.1)
        assert edge(duration=2.0, display=f"127.0.0.1:{port}").go().exit_code == exit_codes.DONE
        time.sleep(1)
    finally:
        viewer.terminate()
        viewer.wait(10)
    assert "/joints/pan" in printed(copy)


def test_an_address_without_a_viewer_is_refused_before_the_robot_is_touched(edge, arm) -> None:
    with pytest.raises(ConfigurationError, match=r"No Rerun viewer answers at 127\.0\.0\.1:1 "):
        edge(display="127.0.0.1:1").go()
    assert not arm.commands
    assert not arm.is_connected


def test_without_a_screen_the_advice_names_the_ways_out(edge, monkeypatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConfigurationError, match=r"no screen here.*--display=HOST:9876.*--display=run\.rrd"):
        edge(display="spawn")


@pytest.mark.parametrize("path", ["", str(RERUN.parent)], ids=["viewer beside Python", "viewer on the path"])
def test_a_viewer_that_does_not_open_is_one_line_and_the_run_goes_on(edge, arm, monkeypatch, caplog, path) -> None:
    """Rerun's spawn returns as if all were well when its window cannot be opened."""
    monkeypatch.setenv("DISPLAY", ":77")
    monkeypatch.setenv("PATH", path)
    with socket.socket() as taken:
        taken.settimeout(1)
        if taken.connect_ex(("127.0.0.1", 9876)) == 0:
            pytest.skip("a viewer runs here, and spawn shows in that")
    result = edge(duration=2.0, display="spawn").go()
    assert result.exit_code == exit_codes.DONE, result.reason
    assert len(arm.commands) == result.summary.ticks[Tick.ACTION]
    (line,) = [message for message in caplog.messages if "display" in message]
    assert "The Rerun viewer has not opened" in line
    assert "The run goes on without a picture" in line
    assert "\n" not in line


def test_what_is_no_display_is_refused(edge) -> None:
    with pytest.raises(ConfigurationError, match=r"expected spawn, HOST:PORT or FILE\.rrd but found 'screen'"):
        edge(display="screen")


def test_a_display_that_dies_costs_the_picture_and_nothing_else(edge, arm, tmp_path) -> None:
    def kill(run) -> None:
        until(lambda: run.trace.tick_counts[Tick.ACTION] > 10, "the arm moves")
        (display,) = run._watchers.sinks
        display._pipe._process.kill()

    result = edge(duration=2.0, display=str(tmp_path / "run.rrd")).go(kill)
    assert result.exit_code == exit_codes.DONE
    assert len(arm.commands) == result.summary.ticks[Tick.ACTION]
