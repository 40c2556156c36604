"""The command longarm-service as a supervisor sees it: in a process of its own."""

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.service.fakes import CHUNK_SIZE, PATIENCE_SECONDS, observation, open_session

from longarm.policy.v1 import policy_service_pb2_grpc as pb_grpc
from longarm_service import __version__, cli
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.settings import ServiceSettings
from longarm_wire import exit_codes

ROOT = Path(__file__).parents[2]


def clean(**environment: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("LONGARM_")} | environment


def longarm_service(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "longarm_service", *arguments],
        env=clean(**environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_help_names_the_commands(tmp_path: Path) -> None:
    done = longarm_service("--help", cwd=tmp_path)
    assert done.returncode == exit_codes.DONE
    for word in ("run", "check-config", "LONGARM_SERVICE_", "exit codes"):
        assert word in done.stdout


def test_help_of_run_lists_the_settings(tmp_path: Path) -> None:
    done = longarm_service("run", "--help", cwd=tmp_path)
    assert done.returncode == exit_codes.DONE
    for flag in ("--port", "--policy_device", "--obs_queue_timeout", "--inference_latency", "--allowed_policies"):
        assert flag in done.stdout


def test_version(tmp_path: Path) -> None:
    done = longarm_service("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (exit_codes.DONE, f"longarm-service {__version__}\n")


def test_check_config_prints_what_is_in_force(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LONGARM_SERVICE_PORT=1234\nLONGARM_SERVICE_PRELOAD=a,b\n")
    done = longarm_service("check-config", "--metrics_port=99", cwd=tmp_path, LONGARM_SERVICE_COMPILE="true")
    assert done.returncode == exit_codes.DONE
    assert {
        "LONGARM_SERVICE_PORT=1234",
        'LONGARM_SERVICE_PRELOAD=["a", "b"]',
        "LONGARM_SERVICE_METRICS_PORT=99",
        "LONGARM_SERVICE_COMPILE=true",
    } <= set(done.stdout.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        ([], {"LONGARM_SERVICE_PROT": "1"}, exit_codes.CANNOT_START, ["LONGARM_SERVICE_PROT", "LONGARM_SERVICE_PORT?"]),
        (["run", "--port=70000"], {}, exit_codes.CANNOT_START, ["LONGARM_SERVICE_PORT", "65535", "70000"]),
        (["check-config", "--dtype=int4"], {}, exit_codes.CANNOT_START, ["LONGARM_SERVICE_DTYPE", "bfloat16"]),
        ([], {"LONGARM_SERVICE_PRELOAD": "[broken"}, exit_codes.CANNOT_START, ["LONGARM_SERVICE_PRELOAD"]),
        (["run", "--prot=1"], {}, exit_codes.BAD_USAGE, ["--prot", "--port"]),
        (["sing"], {}, exit_codes.BAD_USAGE, ["'sing'", "check-config"]),
    ],
)
def test_a_mistake_is_explained(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], code: int, words: list[str]
) -> None:
    done = longarm_service(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_explained_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = longarm_service("run", f"--port={port}", "--metrics_port=0", cwd=tmp_path)
    assert done.returncode == exit_codes.CANNOT_START
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_runs_policies_gets_the_settings_that_are_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process makes its loader of them: a name that it does not know would end every load."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(cli, "ProcessLoader", lambda arguments, **_: given.append(arguments))
    flags = ["--policy_device=cpu", "--dtype=bfloat16", "--torch_threads=3", "--trusted_policies=lab/a@b,/c"]
    cli._process_loader(ServiceSettings.load(flags, program="test"), ())
    (arguments,) = given
    assert arguments.keys() == inspect.signature(LerobotLoader).parameters.keys()
    assert list(arguments.values()) == ["cpu", "bfloat16", False, 3, ("lab/a@b", "/c")]


class Process:
    """serve_fake.py in a process, or another program."""

    def __init__(
        self, directory: Path, *arguments: str, program: str = "tests.service.serve_fake", **environment: str
    ) -> None:
        self.announced = directory / "ports.json"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                program,
                "--port=0",
                "--metrics_port=0",
                f"--announce={self.announced}",
                *arguments,
            ],
            env=clean(PYTHONPATH=str(ROOT), **environment),
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def connect(self) -> grpc.Channel:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.announced.exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return grpc.insecure_channel(f"127.0.0.1:{json.loads(self.announced.read_text())['port']}")

    def wait_until_predicting(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "predicting\n"

    def end(self) -> tuple[int, str]:
        """Lets predictions go on, and returns the exit code and the log."""
        _, log = self.process.communicate("\n\n\n", timeout=PATIENCE_SECONDS)
        return self.process.returncode, log


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    started = Process(tmp_path, "--drain_timeout=15", "--preload=policy")
    yield started
    if started.process.poll() is None:
        started.process.kill()
    started.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_prediction_be_answered(process: Process, number: signal.Signals) -> None:
    with process.connect() as channel:
        stub = pb_grpc.PolicyServiceStub(channel)
        running = stub.PredictChunk.future(observation(open_session(stub)))
        process.wait_until_predicting()
        process.process.send_signal(number)
        time.sleep(0.2)
        assert process.process.poll() is None
        code, log = process.end()
        assert running.result(PATIENCE_SECONDS).step_count == CHUNK_SIZE
    assert code == exit_codes.DONE, log
    assert "ready: listening on 127.0.0.1:" in log
    assert number.name in log
    assert "Traceback" not in log
    assert not process.announced.exists()


def test_a_second_signal_ends_it_at_once(process: Process) -> None:
    with process.connect() as channel:
        stub = pb_grpc.PolicyServiceStub(channel)
        running = stub.PredictChunk.future(observation(open_session(stub)))
        process.wait_until_predicting()
        for _ in range(2):
            process.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert process.process.wait(5) == exit_codes.FAILED
        assert running.exception(PATIENCE_SECONDS) is not None


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nowhere", exit_codes.CANNOT_START, "POLICY_NOT_FOUND: There is no 'nowhere'."),
        # The network may be back when a supervisor tries again
        ("far/away", exit_codes.FAILED, "HUB_UNREACHABLE: 'far/away': the hub does not answer."),
        # And a copy be whole
        ("torn", exit_codes.FAILED, "POLICY_LOAD_FAILED: 'torn' was written to meanwhile."),
    ],
)
def test_a_policy_to_preload_that_does_not_load_is_explained(tmp_path: Path, name: str, code: int, words: str) -> None:
    started = Process(tmp_path, f"--preload={name}")
    found, log = started.end()
    assert found == code
    assert words in log
    assert "Traceback" not in log


def test_systemd_learns_when_it_is_ready_and_when_it_drains(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_SECONDS)
        started = Process(tmp_path, "--preload=policy", NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert manager.recv(1000) == b"READY=1\nSTATUS=ready"
        started.process.send_signal(signal.SIGTERM)
        assert manager.recv(1000) == b"STOPPING=1\nSTATUS=draining"
        assert started.end()[0] == exit_codes.DONE


def test_systemd_never_hears_that_a_service_is_ready_that_is_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        assert Process(tmp_path, "--preload=nowhere", NOTIFY_SOCKET=str(tmp_path / "notify")).end()[0] != 0
        with pytest.raises(BlockingIOError):
            manager.recv(1000)
