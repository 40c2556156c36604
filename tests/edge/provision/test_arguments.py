"""How people name the far machine, and the settings of bringing it up."""

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from longarm_edge.provision import FarSettings, understand
from longarm_edge.settings import EdgeSettings
from longarm_wire.settings import ConfigurationError, ProcessSettings

HOST = "--ssh.host=gpu.example.com"
ROOT = "--ssh.user=root"


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("root@gpu.example.com -p 20567", [ROOT, HOST, "--ssh.port=20567"]),
        ("-p 20567 root@gpu.example.com", [ROOT, HOST, "--ssh.port=20567"]),
        ("-p20567 root@gpu.example.com", [ROOT, HOST, "--ssh.port=20567"]),
        ("ssh -p 20567 root@gpu.example.com", [ROOT, HOST, "--ssh.port=20567"]),
        ("ssh://root@gpu.example.com:20567/", [ROOT, "--ssh.port=20567", HOST]),
        ("gpu.example.com -l root -i key", [HOST, "--ssh.user=root", "--ssh.key_file=key"]),
        ("gpu.example.com --policy out/act", [HOST, "--far.policy=out/act"]),
        ("gpu.example.com --policy=out/act", [HOST, "--far.policy=out/act"]),
        ("root@gpu.example.com --fps 30 --robot.type=x", [ROOT, HOST, "--fps", "30", "--robot.type=x"]),
        ("--fps 30 root@gpu.example.com", [ROOT, HOST, "--fps", "30"]),
        ("--task x@y root@gpu.example.com", [ROOT, HOST, "--task", "x@y"]),
        ("--ssh.agent root@gpu.example.com", [ROOT, HOST, "--ssh.agent"]),
        ("--no-ssh.agent root@gpu.example.com", [ROOT, HOST, "--no-ssh.agent"]),
        ("--ssh.agent False root@gpu.example.com", [ROOT, HOST, "--ssh.agent", "False"]),
        ("--far.environment {} gpu.example.com", [HOST, "--far.environment", "{}"]),
        ("--help gpu.example.com", [HOST, "--help"]),
        ("--task --fps=30 gpu.example.com", [HOST, "--task", "--fps=30"]),
        ("--policy_device=cpu", ["--policy_device=cpu"]),
        ("", []),
    ],
)
def test_a_machine_is_named_as_for_ssh(words: str, flags: list[str]) -> None:
    assert list(understand(words.split(), EdgeSettings.switches()).flags) == flags


def test_a_task_is_no_host() -> None:
    found = understand(["--task", "put x @ y", "root@gpu.example.com"], EdgeSettings.switches())
    assert list(found.flags) == [ROOT, HOST, "--task", "put x @ y"]


def test_logs_take_two_short_flags() -> None:
    found = understand(["gpu.example.com", "-f", "-n", "50"])
    assert (found.follow, found.line_count) == (True, 50)
    assert list(found.flags) == [HOST]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("a b", "Expected one far machine, found a and b"),
        ("a -p", "Expected a value after -p"),
        ("a -n x", "Expected a number of lines after -n"),
    ],
)
def test_what_cannot_be_understood_is_said(words: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        understand(words.split())


class _Process(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="LONGARM_EDGE_", env_file=None)

    far: FarSettings = FarSettings()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGARM_EDGE_FAR__SECRETS__HF_TOKEN", "hush")
    monkeypatch.setenv("LONGARM_EDGE_FAR__REUSE_PACKAGES", "true")
    settings = _Process.load(['--far.environment={"HF_HOME": "/data/hf"}'], program="test")
    assert settings.far.secrets == {"HF_TOKEN": SecretStr("hush")}
    assert settings.far.environment == {"HF_HOME": "/data/hf"}
    assert settings.far.reuse_packages
    assert "hush" not in str(settings.effective())
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("directory", "~", "of Longarm's own"),
        ("directory", "/", "of Longarm's own"),
        ("directory", "~/a$b", "of letters"),
        ("environment", {"A B": "x"}, "names of environment variables, found 'A B'"),
        ("environment", {"A;B": "x"}, "names of environment variables"),
        ("secrets", {"1A": "x"}, "names of environment variables"),
        ("pip_index_url", "https://a:secret@mirror.example.com", "without a password"),
    ],
)
def test_settings_are_checked(name: str, value: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FarSettings.model_validate({name: value})
