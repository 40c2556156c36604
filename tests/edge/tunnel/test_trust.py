"""Host keys against a real sshd: known, unknown, pinned, accepted, changed."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import read_until

from longarm_edge.tunnel import Cause, HostKeyPolicy, PermanentTunnelError
from longarm_edge.tunnel.host_keys import HostKey
from longarm_edge.tunnel.local_sshd import make_key

WRONG_PIN = "SHA256:" + "A" * 43


def refused(lab, settings, cause: Cause, **how) -> str:
    with pytest.raises(PermanentTunnelError) as caught:
        lab.up(settings, **how)
    assert caught.value.cause is cause
    return caught.value.message


def key_of(sshd) -> HostKey:
    return HostKey(*sshd.host_key.with_suffix(".pub").read_text().split()[:2])


def change_key(sshd) -> None:
    sshd.stop()
    sshd.host_key.unlink()
    make_key(sshd.host_key)
    sshd.start()


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path / "new" / "known_hosts"


def test_an_unknown_host_is_refused_and_nothing_is_remembered(lab, empty: Path) -> None:
    sshd = lab.sshd()
    message = refused(lab, lab.settings(sshd, known_hosts_file=empty), Cause.HOST_KEY_UNKNOWN)
    assert f"LONGARM_EDGE_SSH__HOST_KEY_FINGERPRINT={key_of(sshd).fingerprint}" in message
    assert not empty.exists()
    assert "Accepted" not in sshd.log.read_text()


def test_accept_new_remembers_the_key(lab, empty: Path) -> None:
    sshd = lab.sshd()
    settings = lab.settings(sshd, known_hosts_file=empty, host_key_policy="accept-new")
    lab.up(settings).close()
    assert empty.read_text() == sshd.known_hosts
    assert empty.stat().st_mode & 0o077 == 0
    lab.up(settings.model_copy(update={"host_key_policy": HostKeyPolicy.STRICT}))


def test_a_pinned_key_needs_no_known_hosts(lab, empty: Path) -> None:
    sshd = lab.sshd()
    lab.up(lab.settings(sshd, known_hosts_file=empty, host_key_fingerprint=key_of(sshd).fingerprint))
    assert not empty.exists()


def test_another_key_than_the_pinned_one_is_refused(lab) -> None:
    message = refused(lab, lab.settings(lab.sshd(), host_key_fingerprint=WRONG_PIN), Cause.HOST_KEY_CHANGED)
    assert "HOST_KEY_FINGERPRINT" in message


def test_a_changed_key_is_refused_and_one_command_accepts_it(lab) -> None:
    """Rented machines come back with new keys under the old address: daily business, and just what an attack is."""
    sshd = lab.sshd()
    settings = lab.settings(sshd)
    # As most systems write it
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", settings.known_hosts_file], check=True, capture_output=True)
    change_key(sshd)
    message = refused(lab, settings, Cause.HOST_KEY_CHANGED, ask=lambda _: pytest.fail("asked"))
    assert "rented" in message
    command = message.partition("forget the old key with: ")[2].partition(" and start")[0]
    subprocess.run(command, shell=True, check=True, capture_output=True)
    lab.up(settings, ask=lambda _: True)


def test_a_key_that_changes_while_it_runs_ends_it(lab) -> None:
    sshd = lab.sshd()
    tunnel = lab.up(lab.settings(sshd))
    change_key(sshd)
    lab.wait(lambda: tunnel.failure is not None)
    assert tunnel.failure.cause is Cause.HOST_KEY_CHANGED


def test_the_known_one_of_several_keys_is_asked_for(lab) -> None:
    """A server has keys of several types. Known is the one met first, whatever type either side prefers today."""
    directory = lab.directory / "more"
    directory.mkdir()
    rsa = make_key(directory / "rsa", kind="rsa")
    sshd = lab.sshd(options=[f"HostKey {rsa}"])
    settings = lab.settings(sshd)
    kind, body = rsa.with_suffix(".pub").read_text().split()[:2]
    settings.known_hosts_file.write_text(f"[127.0.0.1]:{sshd.port} {kind} {body}\n")
    lab.up(settings)


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_is_asked_once(lab, empty: Path, answer: bool) -> None:
    sshd = lab.sshd()
    asked = []
    settings = lab.settings(sshd, known_hosts_file=empty)
    if answer:
        lab.up(settings, ask=lambda question: not asked.append(question))
        assert empty.read_text() == sshd.known_hosts
    else:
        assert "was not accepted" in refused(
            lab, settings, Cause.HOST_KEY_UNKNOWN, ask=lambda question: bool(asked.append(question))
        )
        assert not empty.exists()
    (question,) = asked
    assert question.fingerprint == key_of(sshd).fingerprint
    assert question.host == f"[127.0.0.1]:{sshd.port}"


RUN_IN_TERMINAL = """
import json, sys
from longarm_edge.tunnel import SshSettings, Tunnel, ask_on_terminal

with Tunnel(SshSettings(**json.loads(sys.argv[1])), ask=ask_on_terminal if sys.stdin.isatty() else None) as tunnel:
    tunnel.open(20)
    print("UP", flush=True)
"""


def test_a_person_is_asked_on_a_terminal(lab, empty: Path) -> None:
    sshd = lab.sshd()
    settings = lab.settings(sshd, known_hosts_file=empty).model_dump_json()
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", RUN_IN_TERMINAL, settings], stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = read_until(ours, "(yes/no) ")
        assert key_of(sshd).fingerprint in shown
        os.write(ours, b"perhaps\n")
        read_until(ours, "(yes/no) ")
        os.write(ours, b"yes\n")
        assert "UP" in read_until(ours, "UP")
        assert process.wait(10) == 0
    os.close(ours)
    assert empty.read_text() == sshd.known_hosts
