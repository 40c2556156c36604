"""The host key policy, against known_hosts files as people have them."""

import base64
from pathlib import Path

import paramiko
import pytest

from longarm_edge.tunnel import Cause, PermanentTunnelError, SshSettings
from longarm_edge.tunnel.host_keys import HostKey, HostKeys, host_name

NAME = "[gpu.example.com]:20567"
KEY = HostKey("ssh-ed25519", base64.b64encode(b"the key").decode())
OTHER = HostKey("ssh-ed25519", base64.b64encode(b"another key").decode())
RSA = HostKey("ssh-rsa", base64.b64encode(b"an rsa key").decode())


def line(names: str, key: HostKey = KEY, marker: str = "") -> str:
    return f"{marker} {names} {key.key_type} {key.body} a comment".strip()


def keys(tmp_path: Path, *lines: str, **settings) -> HostKeys:
    file = tmp_path / "known_hosts"
    file.write_text("\n".join(lines))
    return HostKeys(SshSettings(known_hosts_file=file, **settings))


@pytest.mark.parametrize(
    "names",
    [
        NAME,
        f"other.example.com,{NAME}",
        "[GPU.example.com]:20567",
        "[*.example.com]:20567",
        "[gpu.example.???]:*",
        paramiko.HostKeys.hash_host(NAME),
    ],
)
def test_entries_that_speak_of_the_host(tmp_path: Path, names: str) -> None:
    keys(tmp_path, "# a comment", "", "garbage", line(names)).check(NAME, KEY, pinned=True)


@pytest.mark.parametrize(
    "names",
    ["gpu.example.com", "[gpu.example.com]:22", f"[*.example.com]:20567,!{NAME}", "|1|bad|worse", "@cert-authority *"],
)
def test_entries_that_do_not(tmp_path: Path, names: str) -> None:
    with pytest.raises(PermanentTunnelError) as caught:
        keys(tmp_path, line(names)).check(NAME, KEY, pinned=True)
    assert caught.value.cause is Cause.HOST_KEY_UNKNOWN


@pytest.mark.parametrize("presented", [OTHER, RSA])
def test_another_key_is_a_changed_key_whatever_its_type(tmp_path: Path, presented: HostKey) -> None:
    host_keys = keys(tmp_path, line(NAME), host_key_policy="accept-new")
    with pytest.raises(PermanentTunnelError, match="ssh-keygen -R") as caught:
        host_keys.check(NAME, presented, pinned=True)
    assert caught.value.cause is Cause.HOST_KEY_CHANGED


def test_any_of_several_known_keys_will_do(tmp_path: Path) -> None:
    host_keys = keys(tmp_path, line(NAME, RSA), line(NAME))
    host_keys.check(NAME, KEY, pinned=True)
    assert host_keys.known(NAME) == [RSA, KEY]


def test_a_revoked_key_is_refused_even_if_known(tmp_path: Path) -> None:
    host_keys = keys(tmp_path, line(NAME), line("*", marker="@revoked"))
    with pytest.raises(PermanentTunnelError, match="revoked"):
        host_keys.check(NAME, KEY, pinned=True)


def test_the_pin_goes_before_known_hosts_and_not_for_jump_hosts(tmp_path: Path) -> None:
    host_keys = keys(tmp_path, line(NAME), host_key_fingerprint=OTHER.fingerprint)
    host_keys.check(NAME, OTHER, pinned=True)
    host_keys.check(NAME, KEY, pinned=False)
    with pytest.raises(PermanentTunnelError):
        host_keys.check(NAME, KEY, pinned=True)


def test_a_key_is_appended_on_a_line_of_its_own(tmp_path: Path) -> None:
    before = line("elsewhere")
    host_keys = keys(tmp_path, before, host_key_policy="accept-new")
    host_keys.check(NAME, KEY, pinned=True)
    host_keys.check(NAME, KEY, pinned=True)
    assert host_keys.settings.known_hosts_file.read_text() == f"{before}\n{NAME} {KEY.key_type} {KEY.body}\n"


def test_a_key_that_cannot_be_remembered_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    host_keys = HostKeys(SshSettings(known_hosts_file=tmp_path / "file" / "known_hosts", host_key_policy="accept-new"))
    with pytest.raises(PermanentTunnelError, match="cannot be remembered"):
        host_keys.check(NAME, KEY, pinned=True)


def test_names_are_those_of_known_hosts() -> None:
    assert host_name("gpu", 22) == "gpu"
    assert host_name("gpu", 20567) == "[gpu]:20567"


@pytest.mark.parametrize("body", [KEY.body[:-1], "not*base64="])
def test_a_line_that_is_cut_off_or_mistyped_is_passed_over(tmp_path: Path, body: str) -> None:
    """As by ssh. It once ended the tunnel's process again and again."""
    broken = line(NAME, HostKey(KEY.key_type, body))
    keys(tmp_path, broken, line(NAME)).check(NAME, KEY, pinned=True)
    with pytest.raises(PermanentTunnelError) as caught:
        keys(tmp_path, broken).check(NAME, KEY, pinned=True)
    assert caught.value.cause is Cause.HOST_KEY_UNKNOWN
