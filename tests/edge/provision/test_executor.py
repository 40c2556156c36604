"""What the executor asks of the far side, with a far side that only remembers; and the scripts by themselves."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from rich.console import Console

from longarm_edge.provision import FarSettings, ProvisionError, scripts
from longarm_edge.provision.commands import _Order
from longarm_edge.provision.errors import FarCommandError, PortTakenError
from longarm_edge.provision.executor import Executor, title
from longarm_edge.provision.facts import Facts
from longarm_edge.provision.far import WRAPPER
from longarm_edge.provision.narrator import Narrator
from longarm_edge.provision.plan import (
    AwaitReady,
    InstallLongarm,
    InstallPackages,
    MakeDirectory,
    MakeEnvironment,
    SendPolicy,
    StartService,
    Step,
    StopService,
)
from longarm_edge.provision.unit import UNIT_NAME, render
from longarm_edge.tunnel import SshSettings
from longarm_wire.settings import ConfigurationError

SCRIPTS = {name: text for name, text in vars(scripts).items() if name.isupper() and not name.startswith("_")}
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]
FACTS = Facts("/home/a/.longarm")
SETTINGS = FarSettings(
    pip_index_url="https://mirror.example.com/all",
    torch_index_url="https://mirror.example.com/cu126",
    hf_endpoint="https://hub.example.com",
    environment={"LONGARM_SERVICE_COMPILE": "true"},
    secrets={"HF_TOKEN": SecretStr("hush")},
)


class RememberingFar:
    """Answers everything with success, or with the error given for a script."""

    def __init__(self, errors: Mapping[str, Exception] | None = None) -> None:
        self.calls: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self._errors = errors or {}

    def run(self, script: str, variables: Any = None, *, environment: Any = None, **_: Any) -> list[str]:
        self.calls.append((script, variables or {}, environment or {}))
        if script in self._errors:
            raise self._errors[script]
        return [json.dumps({"port": 8080, "metrics_port": 9100})] if script == scripts.READ_PORTS else []

    def sftp(self) -> Any:
        raise AssertionError("nothing to send")

    def call(self, script: str) -> tuple[dict[str, str], dict[str, str]]:
        (found,) = [(variables, environment) for text, variables, environment in self.calls if text == script]
        return found


def executor(far: RememberingFar, monkeypatch: pytest.MonkeyPatch) -> Executor:
    monkeypatch.setattr("longarm_edge.provision.upload.send", lambda *_: 0)
    wanted, cargo = _Order(SshSettings(host="gpu"), SETTINGS, "hub/policy", "", "bfloat16").for_facts(FACTS)
    return Executor(far, FACTS.directory, wanted, cargo, Narrator(Console(quiet=True)))


def test_mirrors_reach_pip_and_the_hub_address_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    far = RememberingFar()
    steps: list[Step] = [InstallPackages(), StartService(8081, 9100, "own"), AwaitReady()]
    service = executor(far, monkeypatch).carry_out(steps)
    assert (service.port, service.metrics_port, service.policy) == (8080, 9100, "hub/policy")
    variables, environment = far.call(scripts.INSTALL_PACKAGES)
    assert environment["PIP_INDEX_URL"] == "https://mirror.example.com/all"
    assert "PIP_EXTRA_INDEX_URL" not in environment
    assert environment["PIP_CACHE_DIR"].startswith(FACTS.directory)
    assert variables["torch_index_url"] == "https://mirror.example.com/cu126"
    assert variables["torch"].startswith("torch==")
    variables, environment = far.call(scripts.START_DETACHED)
    config = json.loads(variables["config"])
    assert environment == {"HF_TOKEN": "hush"}
    assert "hush" not in variables["config"]
    expected = {
        "HF_ENDPOINT": "https://hub.example.com",
        "LONGARM_SERVICE_COMPILE": "true",
        "LONGARM_SERVICE_HOST": "127.0.0.1",
        "LONGARM_SERVICE_METRICS_HOST": "127.0.0.1",
        "LONGARM_SERVICE_PORT": "8081",
        "LONGARM_SERVICE_PRELOAD": '["hub/policy"]',
        "LONGARM_SERVICE_POLICY_DEVICE": "cuda",
        "LONGARM_SERVICE_DTYPE": "bfloat16",
    }
    assert config["environment"].items() >= expected.items()


def test_under_systemd_the_secret_goes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    far = RememberingFar()
    executor(far, monkeypatch).carry_out([StartService(8080, 9100, "user"), AwaitReady()])
    variables, environment = far.call(scripts.START_UNIT)
    assert environment == {"HF_TOKEN": "hush"}
    assert "hush" not in str(variables)
    assert (variables["scope"], variables["unit_name"], variables["secret_names"]) == ("--user", UNIT_NAME, "HF_TOKEN")


def test_a_step_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    far = RememberingFar({scripts.INSTALL_PACKAGES: FarCommandError(1, ["ERROR: No matching distribution"])})
    with pytest.raises(ProvisionError, match=r"installing what .* failed on the far side:\nERROR: No matching"):
        executor(far, monkeypatch).carry_out([InstallPackages(), AwaitReady()])


def test_a_service_that_crashes_is_not_final(monkeypatch: pytest.MonkeyPatch) -> None:
    far = RememberingFar({scripts.AWAIT_READY: FarCommandError(1, ["Traceback", "OutOfMemoryError"])})
    with pytest.raises(ProvisionError, match="OutOfMemoryError"):
        executor(far, monkeypatch).carry_out([AwaitReady()])
    far = RememberingFar({scripts.AWAIT_READY: FarCommandError(3, ["longarm-service: no such device", "bye"])})
    with pytest.raises(ConfigurationError, match=r"as configured: no such device$"):
        executor(far, monkeypatch).carry_out([AwaitReady()])


@pytest.mark.parametrize("name", ["LONGARM_SERVICE_PORT", "LONGARM_SERVICE_METRICS_PORT"])
def test_a_port_that_is_taken_is_not_final_and_named_as_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"longarm-service: Address already in use. Set {name} to another port, or to 0 for a free one."
    far = RememberingFar({scripts.AWAIT_READY: FarCommandError(3, [said])})
    with pytest.raises(PortTakenError) as caught:
        executor(far, monkeypatch).carry_out([AwaitReady()])
    assert "--ssh.service_port" in str(caught.value)
    assert "LONGARM_SERVICE" not in str(caught.value)


@pytest.mark.parametrize("change", [{"environment": {"A": "1"}}, {"reuse_packages": True}, {"secrets": {}}])
def test_a_running_service_has_to_agree_with_the_settings(change: dict[str, Any]) -> None:
    def revision(policy: str = "", device: str = "", **changes: Any) -> str:
        settings = FarSettings.model_validate({**SETTINGS.model_dump(), **changes})
        return _Order(SshSettings(host="gpu"), settings, policy, device, "").for_facts(FACTS)[0].revision

    assert revision() != revision(**change)
    # What a robot asks for when it connects is no reason to start anew under the feet of others
    assert revision() == revision(policy="another", device="cpu")
    assert revision() == revision(secrets={"HF_TOKEN": "another"})


STEPS: list[Step] = [
    MakeDirectory(),
    SendPolicy("act"),
    StopService(),
    MakeEnvironment("python3"),
    InstallPackages(),
    InstallLongarm("1"),
    StartService(1, 2, "own"),
    AwaitReady(),
]


def test_each_step_has_a_title() -> None:
    assert len({title(step) for step in STEPS}) == len(STEPS)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell(name: str, shell: str) -> None:
    command = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
    found = subprocess.run(command, input=SCRIPTS[name], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_systemctl_is_told_names_and_no_secrets(tmp_path: Path) -> None:
    """With a systemctl that writes down what it is told: no systemd runs here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "far" / "run").mkdir(parents=True)
    (tmp_path / "far" / ".longarm").touch()
    told = tmp_path / "told"
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$*" >>"{told}"\n')
    systemctl.chmod(0o755)
    unit = render(str(tmp_path / "far"), scope="system", secret_names=["HF_TOKEN"])
    variables = {
        "directory": str(tmp_path / "far"),
        "config": "{}",
        "unit": unit,
        "unit_name": UNIT_NAME,
        "scope": "--system",
        "secret_names": "HF_TOKEN",
    }
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HF_TOKEN": "hush"}
    for script in (scripts.START_UNIT, scripts.REMOVE):
        subprocess.run(["sh", "-eu", "-c", script], env={**environment, **variables}, check=True)
        if script == scripts.START_UNIT:
            assert (tmp_path / "far" / "run" / UNIT_NAME).read_text() == unit + "\n"
    path = tmp_path / "far" / "run" / UNIT_NAME
    scope = "--system" if os.getuid() == 0 else "--user"
    assert told.read_text().splitlines() == [
        f"--system link --force {path}",
        "--system daemon-reload",
        "--system import-environment HF_TOKEN",
        f"--system enable {UNIT_NAME}",
        f"--system restart {UNIT_NAME}",
        f"{scope} disable --now {UNIT_NAME}",
        f"{scope} unset-environment HF_TOKEN",
        f"{scope} daemon-reload",
    ]
    assert not (tmp_path / "far").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_wrapper_works_in_any_shell(shell: str) -> None:
    """Whatever sh is over there: nothing is said but what the script says, and nothing stays."""
    command = [shell, "sh", "-s"] if shell == "busybox" else [shell, "-s"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(WRAPPER.format(script="echo out; echo err >&2; (exit 4); echo not").encode())
        process.stdin.flush()
        assert process.stdout.read() == b"out\nerr\n"
        assert process.wait(10) == 4
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
