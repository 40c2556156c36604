"""Settings of the tunnel: what is refused, and that secrets stay where they belong."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from longarm_edge.tunnel import Backend, HostKeyPolicy, PermanentTunnelError, SshSettings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"host": "root@gpu"}, "ssh.user"),
        ({"host": "-oProxyCommand=evil"}, "host name"),
        ({"host": "a b"}, "host name"),
        ({"host": "ssh://gpu"}, "host name"),
        ({"host": "gpu:2222"}, "ssh.port"),
        ({"host": "[::1]:2222"}, "ssh.port"),
        ({"host": "[gpu]"}, "host name"),
        ({"user": "-l"}, "user name"),
        ({"port": 65536}, "65535"),
        ({"service_port": 0}, "greater than or equal to 1"),
        ({"silence_timeout": 0.5}, "greater than or equal to 2"),
        ({"host_key_fingerprint": "MD5:00"}, "ssh-keygen -lf"),
        ({"key_file": "/nowhere/key"}, "Expected a file"),
        ({"config_file": "/nowhere/config"}, "Expected a file"),
        ({"password": "a", "password_file": __file__}, "password"),
        ({"local_port": 8080, "local_metrics_port": 8080}, "two different ports"),
    ],
)
def test_what_cannot_work_is_refused(values: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SshSettings(**values)


@pytest.mark.parametrize("name", ["key_file", "password_file", "passphrase_file"])
def test_a_secret_that_others_can_read_is_refused_with_the_fix(tmp_path: Path, name: str) -> None:
    file = tmp_path / "my secret"
    file.write_text("x")
    file.chmod(0o644)
    with pytest.raises(ValidationError, match=f"chmod 600 '{file}'"):
        SshSettings(**{name: file})
    file.chmod(0o600)
    assert getattr(SshSettings(**{name: file}), name) == file


def test_a_key_of_another_owner_must_be_as_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file mounted into a container often belongs to nobody in it; ssh itself would take it, whoever reads it."""
    file = tmp_path / "key"
    file.write_text("x")
    monkeypatch.setattr("os.getuid", lambda: file.stat().st_uid + 1)
    file.chmod(0o644)
    with pytest.raises(ValidationError, match=f"chmod 600 {file}"):
        SshSettings(key_file=file)
    # As a cluster mounts secrets: for a group of this process
    file.chmod(0o440)
    assert SshSettings(key_file=file).key_file == file
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValidationError, match=rf"chown \d+ {file}"):
        SshSettings(key_file=file)


@pytest.mark.parametrize(("written", "host"), [("[::1]", "::1"), ("[fe80::1%eth0]", "fe80::1%eth0"), ("::1", "::1")])
def test_an_address_may_be_in_brackets_as_in_a_url(written: str, host: str) -> None:
    assert SshSettings(host=written).host == host


def test_defaults_need_no_tunnel_and_expand_home() -> None:
    settings = SshSettings()
    assert settings.host == ""
    assert settings.backend is Backend.PARAMIKO
    assert settings.host_key_policy is HostKeyPolicy.STRICT
    assert settings.known_hosts_file == Path.home() / ".ssh/known_hosts"


def test_secrets_are_masked_except_for_the_pipe() -> None:
    settings = SshSettings(password="hunter2", passphrase="open sesame")
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in shown
        assert "open sesame" not in shown
    assert settings.to_json()["password"] == "hunter2"
    assert SshSettings.model_validate(settings.to_json()) == settings


def test_secrets_come_from_the_first_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("line one\nline two\n")
    file.chmod(0o600)
    assert SshSettings(password_file=file).read_password() == "line one"
    settings = SshSettings(passphrase_file=file)
    file.write_text("")
    assert settings.read_passphrase() == ""
    file.unlink()
    with pytest.raises(PermanentTunnelError, match="cannot be read"):
        settings.read_passphrase()
