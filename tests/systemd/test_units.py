"""The unit files by themselves: what systemd-analyze says, and what has to agree with the code."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from longarm_edge.priority import FIFO_PRIORITY
from longarm_edge.settings import EdgeSettings, StopRule
from longarm_service.settings import ServiceSettings
from longarm_wire import exit_codes
from longarm_wire.settings import ProcessSettings
from tests.systemd.conftest import DEPLOY

UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))
# Of 10, times ten; lower is better. What the units need costs: devices, the network, real-time priority, code made at
# run time, and for Docker its socket. Today's values; only ever lowered
EXPOSURE = {"longarm-edge.service": 20, "longarm-edge-docker.service": 23, "longarm-service.service": 19}
# Variables in the examples that other programs read
FOREIGN = {"service": {"HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"}, "edge-docker": {"DOCKER_ARGS"}}
needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: apt install systemd)"
)


def values(unit: str, name: str) -> list[str]:
    """Returns what unit gives name, joined lines included."""
    text = (DEPLOY / unit).read_text().replace("\\\n", "")
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def test_there_are_three_units() -> None:
    assert set(UNITS) == set(EXPOSURE)


@needs_systemd_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_every_line(unit: str, tmp_path: Path) -> None:
    """Any output counts: systemd-analyze succeeds on keys that it does not know."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit
    # Programs that this machine need not have
    copy.write_text(re.sub(r"/opt/longarm/\S*/bin/\S+|/usr/bin/docker", str(program), (DEPLOY / unit).read_text()))
    found = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@needs_systemd_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_the_units_stay_hardened(unit: str) -> None:
    flags = ["--offline=true", "--no-pager", f"--threshold={EXPOSURE[unit]}"]
    found = subprocess.run(
        ["systemd-analyze", "security", *flags, DEPLOY / unit], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_restarted_for_ever_except_when_it_can_never_start(unit: str) -> None:
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "RestartPreventExitStatus") == [str(exit_codes.CANNOT_START)]
    assert values(unit, "StartLimitIntervalSec") == ["0"]
    assert float(values(unit, "RestartSec")[0]) >= 5, "a pace that no log minds"


def test_a_policy_that_memory_runs_out_for_does_not_end_the_others() -> None:
    assert values("longarm-service.service", "OOMPolicy") == ["continue"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_says_when_to_use_it(unit: str) -> None:
    assert (DEPLOY / unit).read_text().startswith("# ")
    assert values(unit, "Documentation")


def test_stopping_takes_less_than_systemd_allows() -> None:
    longest = 60.0
    with pytest.raises(ValueError, match="rest_seconds"):
        EdgeSettings(_env_file=None, safety={"on_stop": StopRule.REST, "rest_seconds": longest + 1})
    for unit in ("longarm-edge.service", "longarm-edge-docker.service"):
        assert float(values(unit, "TimeoutStopSec")[0]) > longest + 30
    (stop,) = re.findall(r"stop --time (\d+)", (DEPLOY / "longarm-edge-docker.service").read_text())
    assert longest < float(stop) < float(values("longarm-edge-docker.service", "TimeoutStopSec")[0])
    drain = ServiceSettings(_env_file=None).drain_timeout
    assert float(values("longarm-service.service", "TimeoutStopSec")[0]) > 2 * drain


def test_no_unit_takes_the_whole_machine() -> None:
    for unit in ("longarm-service.service", "longarm-edge.service"):
        (memory,), (tasks,) = values(unit, "MemoryMax"), values(unit, "TasksMax")
        assert 50 <= int(memory.removesuffix("%")) <= 90
        assert int(tasks) <= 4096
    for run in re.findall(r"docker run(.*)", (DEPLOY / "longarm-edge-docker.service").read_text().replace("\\\n", "")):
        assert " --memory 8g --pids-limit 2048 " in run


def test_the_edge_may_have_the_priority_that_it_asks_for() -> None:
    """Whether the kernel grants it is not tested: real-time limits do not apply in a container."""
    assert values("longarm-edge.service", "LimitRTPRIO") == [str(FIFO_PRIORITY)]
    assert values("longarm-edge.service", "RestrictRealtime") == []


@pytest.mark.parametrize("unit", ["longarm-edge.service", "longarm-service.service"])
def test_nothing_forbids_code_made_at_run_time(unit: str) -> None:
    assert values(unit, "MemoryDenyWriteExecute") == []


@pytest.mark.parametrize(("name", "settings"), [("edge", EdgeSettings), ("service", ServiceSettings)])
def test_every_variable_of_an_example_is_a_setting(name: str, settings: type[ProcessSettings]) -> None:
    given = variables(name)
    assert len(given) > 8
    assert set(given) - FOREIGN.get(name, set()) <= set(settings.variables())


@pytest.mark.parametrize(("name", "settings"), [("edge", EdgeSettings), ("service", ServiceSettings)])
def test_the_values_of_an_example_are_valid(name: str, settings: type[ProcessSettings], monkeypatch, tmp_path) -> None:
    """As systemd would set them: somebody takes away the # and no more."""
    key = tmp_path / "id_ed25519"
    key.touch(mode=0o600)
    for variable, value in variables(name).items():
        monkeypatch.setenv(variable, value.replace("/var/lib/longarm/.ssh/id_ed25519", str(key)))
    assert settings.load([], program=name).model_fields_set


def test_the_variables_of_docker_are_those_that_the_unit_uses() -> None:
    used = set(re.findall(r"\$\{?([A-Z_]+)", " ".join(values("longarm-edge-docker.service", "Exec\\w+"))))
    assert set(variables("edge-docker")) == used


@pytest.mark.parametrize("name", ["edge", "service", "edge-docker"])
def test_every_variable_of_an_example_is_explained(name: str) -> None:
    """A paragraph is text, then variables; the text is more than a word."""
    paragraphs = (DEPLOY / f"{name}.env.example").read_text().split("\n\n")
    for paragraph in paragraphs[1:]:
        words = [line for line in paragraph.splitlines() if line.startswith("# ")]
        assert len(" ".join(words)) > 40, paragraph


def variables(name: str) -> dict[str, str]:
    """Returns the variables of an example, commented out or not."""
    text = (DEPLOY / f"{name}.env.example").read_text()
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))
