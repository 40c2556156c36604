"""The example environment files: every variable is one that somebody reads, and is explained where it stands."""

import re
from pathlib import Path

import pytest

from longarm_edge.settings import EdgeSettings
from longarm_service.settings import ServiceSettings
from longarm_wire._declarations import is_mapping

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
EXAMPLES = sorted(DEPLOY.rglob("*.env.example"))
# A variable that is set, or shown as one that could be
ASSIGNMENT = re.compile(r"^(?:# ?)?([A-Z][A-Z0-9_]*)=")
# ${NAME} or ${NAME:-default} of a compose file or a unit
REFERENCE = re.compile(r"\$\{?([A-Z][A-Z0-9_]*)")


def assigned(text: str) -> list[str]:
    return [match[1] for line in text.splitlines() if (match := ASSIGNMENT.match(line))]


def known(folder: Path) -> set[str]:
    """Returns what the processes read, and what the deployment files in folder refer to."""
    readers = [path for path in folder.iterdir() if path.suffix in (".yaml", ".service", "") and path.is_file()]
    referred = {name for path in readers for name in REFERENCE.findall(path.read_text())}
    return {*EdgeSettings.variables(), *ServiceSettings.variables(), *referred}


def unread(names: list[str], readers: set[str]) -> list[str]:
    declared = {**EdgeSettings.variables(), **ServiceSettings.variables()}
    # A mapping takes its entries one by one as NAME__KEY
    entries = tuple(f"{name}__" for name, info in declared.items() if is_mapping(info))
    return [name for name in names if name not in readers and not name.startswith(entries)]


def unexplained(text: str) -> list[str]:
    """Returns the variables without a note above them; several in a row share one."""
    missing, explained = [], False
    for line in text.splitlines():
        if match := ASSIGNMENT.match(line):
            missing += [] if explained else [match[1]]
        else:
            explained = line.startswith("# ") and not line.startswith("# ---") and len(line) > 10
    return missing


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_variable_is_read_and_explained(path: Path) -> None:
    text = path.read_text()
    assert assigned(text)
    assert unread(assigned(text), known(path.parent)) == []
    assert unexplained(text) == []


def test_a_misspelt_variable_is_found() -> None:
    assert unread(["LONGARM_EDGE_FSP", "LONGARM_EDGE_FAR__SECRETS__HF_TOKEN"], set()) == ["LONGARM_EDGE_FSP"]
    assert unexplained("# A note about it.\nA=1\n# B=2\n\nC=3\n") == ["C"]


def test_the_example_for_a_rented_container_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a person would use it: copied to .env, with a password in the file that it names."""
    monkeypatch.chdir(tmp_path)
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    text = (DEPLOY / "autodl" / "edge.env.example").read_text()
    (tmp_path / ".env").write_text(text.replace("~/.gpu-password", str(password)))
    settings = EdgeSettings.load([], program="longarm-edge")
    assert settings.ssh.host == "gpu.example.com"
    assert settings.far.directory == "~/autodl-tmp/longarm"
    assert settings.robot["cameras"]["front"]["fps"] == 30
