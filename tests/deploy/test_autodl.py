"""The example settings for a rented container are real ones, each is explained, and they load as they stand."""

import re
from pathlib import Path

import pytest

from longarm_edge.settings import EdgeSettings

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "autodl" / "edge.env.example"
# A variable that is set, or shown as one that could be
ASSIGNMENT = re.compile(r"^(?:# )?(LONGARM_[A-Z0-9_]+)=", re.MULTILINE)


def test_every_variable_is_a_setting() -> None:
    names = ASSIGNMENT.findall(EXAMPLE.read_text())
    assert len(names) > 10
    # A mapping takes its entries one by one as NAME__KEY
    unknown = set(names) - set(EdgeSettings.variables()) - {"LONGARM_EDGE_FAR__SECRETS__HF_TOKEN"}
    assert unknown == set()


def test_every_variable_is_explained() -> None:
    """By a note above it, or above those right before it."""
    explained = False
    for line in EXAMPLE.read_text().splitlines():
        if ASSIGNMENT.match(line):
            assert explained, line
        else:
            explained = line.startswith("# ") and not line.startswith("# ---")


def test_it_loads_as_a_person_would_use_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Copied to .env, with a password in the file that it names."""
    monkeypatch.chdir(tmp_path)
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    (tmp_path / ".env").write_text(EXAMPLE.read_text().replace("~/.gpu-password", str(password)))
    settings = EdgeSettings.load([], program="longarm-edge")
    assert settings.ssh.host == "gpu.example.com"
    assert settings.far.directory == "~/autodl-tmp/longarm"
    assert settings.robot["cameras"]["front"]["fps"] == 30
