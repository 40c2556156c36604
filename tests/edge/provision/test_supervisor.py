"""The far side's supervisor with a service that does as it is told, and no SSH."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.edge.provision.conftest import free_port, until

from longarm_service.supervisor import main, read_state, wait_until_ready

# Runs the supervisor with FAKE in place of the service
DRIVER = """
import sys
from longarm_service import supervisor
supervisor.COMMAND = (sys.executable, sys.argv[1])
supervisor.LOG_BYTES = 20_000
sys.exit(supervisor.main(sys.argv[2:]))
"""
FAKE = """
import http.server, json, os, pathlib, signal, sys, time
mode = pathlib.Path("mode").read_text()
print("mode", mode, "value", os.environ["VALUE"], "secret", len(os.environ.get("SECRET", "")), flush=True)
if mode == "cannot": sys.exit(3)
if mode == "crash": sys.exit(1)
if mode == "stubborn": signal.signal(signal.SIGTERM, signal.SIG_IGN)
else: signal.signal(signal.SIGTERM, lambda *_: (print("drained", flush=True), os._exit(0)))
if mode == "loud": [print("y" * 100, flush=True) for _ in range(1000)]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ready")
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
ports = {"port": 1, "metrics_port": server.server_address[1]}
pathlib.Path(os.environ["LONGARM_SERVICE_ANNOUNCE"]).write_text(json.dumps(ports))
print("listening", flush=True)
server.serve_forever()
"""


class Place:
    """A supervisor's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "run").mkdir()
        self.set_mode("ready")
        (directory / "fake.py").write_text(FAKE)
        config = {"revision": "r1", "environment": {"VALUE": "7", "PORT": str(free_port())}}
        (directory / "run" / "service.json").write_text(json.dumps(config))

    def set_mode(self, mode: str) -> None:
        (self.directory / "mode").write_text(mode)

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-c", DRIVER, str(self.directory / "fake.py"), str(self.directory), *options]

    def state(self, name: str) -> str:
        return read_state(self.directory).get(name, "")

    def log(self) -> str:
        # In the middle of a rotation there is none
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "logs" / "service.log").read_text()
        return ""

    def until_listening(self, not_pid: str = "") -> None:
        announce = self.directory / "run" / "announce.json"
        until(lambda: self.state("service") not in ("", not_pid) and announce.exists(), "a service that listens")


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def start(place: Place) -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def run(*options: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "SECRET": "12345"}
        running.append(subprocess.Popen(place.command(*options), env=environment, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield run
    for process in running:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        process.stderr.close()
    with contextlib.suppress(ProcessLookupError, ValueError):
        os.kill(int(place.state("supervisor")), signal.SIGTERM)


def test_it_runs_the_service_and_ends_it_gently(place: Place, start: Start) -> None:
    process = start()
    place.until_listening()
    assert place.state("state") == "running"
    assert place.state("revision") == "r1"
    assert int(place.state("supervisor")) == process.pid
    process.terminate()
    assert process.wait(10) == 0
    assert place.state("state") == "stopped"
    assert "mode ready value 7 secret 5" in place.log()
    assert "drained" in place.log()


def test_a_service_that_is_killed_comes_back(place: Place, start: Start) -> None:
    start()
    place.until_listening()
    first = place.state("service")
    os.kill(int(first), signal.SIGKILL)
    place.until_listening(first)
    assert place.state("restarts") == "1"
    assert place.state("exit") == "SIGKILL"


def test_a_service_that_keeps_crashing_is_given_longer_and_longer(place: Place, start: Start) -> None:
    place.set_mode("crash")
    process = start()
    until(lambda: "next try in 2 s" in (place.log() if place.state("state") else ""), "a longer pause")
    assert "next try in 0.5 s" in place.log()
    assert place.state("state") == "waiting"
    # The pause does not hold up the end
    process.terminate()
    assert process.wait(5) == 0


def test_a_service_that_can_never_start_is_left_alone(place: Place, start: Start) -> None:
    place.set_mode("cannot")
    assert start().wait(10) == 3
    assert place.state("state") == "failed"
    assert place.state("restarts") == "0"


def test_sighup_starts_it_anew_at_once(place: Place, start: Start) -> None:
    process = start()
    place.until_listening()
    first = place.state("service")
    process.send_signal(signal.SIGHUP)
    place.until_listening(first)
    assert "next try" not in place.log()
    assert place.log().count("drained") == 1


def test_the_service_ends_with_its_supervisor(place: Place, start: Start) -> None:
    """A service that nobody watches would hold the ports and the GPU."""
    process = start()
    place.until_listening()
    service = int(place.state("service"))
    process.kill()
    until(
        lambda: not Path(f"/proc/{service}/cmdline").exists() or not Path(f"/proc/{service}/cmdline").read_bytes(),
        "end",
    )


def test_detached_it_outlives_who_started_it(place: Place, start: Start) -> None:
    assert start("--detach").wait(10) == 0
    place.until_listening()
    supervisor = int(place.state("supervisor"))
    assert os.getsid(supervisor) != os.getsid(0)
    assert Path(f"/proc/{supervisor}/fd/0").readlink() == Path(os.devnull)
    second = start("--detach")
    assert second.wait(10) == 1
    assert "already runs" in second.stderr.read()
    os.kill(supervisor, signal.SIGTERM)
    until(lambda: place.state("state") == "stopped", "the end")


def test_the_log_is_rotated(place: Place, start: Start) -> None:
    place.set_mode("loud")
    start()
    until(lambda: (place.directory / "logs" / "service.log.3").exists(), "the third old log")
    until(lambda: "listening" in place.log(), "the last line")
    logs = sorted(path.name for path in (place.directory / "logs").iterdir())
    assert logs == ["service.log", "service.log.1", "service.log.2", "service.log.3"]
    assert all(path.stat().st_size <= 20_000 for path in (place.directory / "logs").iterdir())
    assert (place.directory / "logs" / "service.log").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("mode", "code"), [("ready", 0), ("cannot", 3), ("crash", 1)])
def test_waiting_tells_how_it_went(place: Place, start: Start, mode: str, code: int) -> None:
    place.set_mode(mode)
    out = io.StringIO()
    start()
    assert wait_until_ready(place.directory, 20, out) == code
    assert f"mode {mode}" in out.getvalue()


def test_waiting_for_what_is_ready_says_nothing(place: Place, start: Start) -> None:
    start()
    place.until_listening()
    out = io.StringIO()
    assert wait_until_ready(place.directory, 5, out) == 0
    assert out.getvalue() == ""


def test_waiting_ends(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(place.directory), "--wait", "0.1"]) == 1
    assert "not ready within 0.1 s" in capsys.readouterr().out
