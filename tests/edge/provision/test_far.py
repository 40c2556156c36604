"""Scripts and files over a real SSH connection."""

import threading
import time
from pathlib import Path

import pytest
from tests.edge.provision.conftest import Account, SlowLink, until

from longarm_edge.provision.connection import connected
from longarm_edge.provision.errors import ConnectionLostError, FarCommandError, ProvisionError
from longarm_edge.provision.facts import look
from longarm_edge.provision.far import MASK, SshFar
from longarm_edge.provision.upload import compare, list_files, read_directory, read_policy, send
from longarm_edge.tunnel import SshSettings
from longarm_edge.tunnel.local_sshd import LocalSshd
from longarm_wire.settings import ConfigurationError


def test_a_script_has_variables_and_an_environment(far: SshFar) -> None:
    lines = far.run(
        'echo "$name"; sh -c \'echo "${name-unset} $SEEN"\'', {"name": "it's $HOME"}, environment={"SEEN": "a\nb"}
    )
    assert lines == ["it's $HOME", "unset a", "b"]


def test_a_script_stops_at_the_first_failure(far: SshFar) -> None:
    with pytest.raises(FarCommandError) as caught:
        far.run("echo one; (echo two >&2; exit 7); echo three")
    assert caught.value.code == 7
    assert caught.value.lines == ("one", "two")


def test_a_script_that_is_killed_is_no_broken_connection(far: SshFar) -> None:
    with pytest.raises(FarCommandError) as caught:
        far.run("echo one; kill -KILL $$")
    assert caught.value.lines == ("one",)


def test_lines_come_as_they_are_said(far: SshFar) -> None:
    heard: list[tuple[float, str]] = []
    far.run("echo a; sleep 0.5; printf 'b\\rc'", on_line=lambda line: heard.append((time.monotonic(), line)))
    assert [line for _, line in heard] == ["a", "b", "c"]
    assert heard[1][0] - heard[0][0] > 0.3


def test_a_script_has_no_input(far: SshFar) -> None:
    assert far.run("cat; echo done") == ["done"]


def test_secrets_are_masked_in_what_is_said(ssh: SshSettings) -> None:
    with connected(ssh, None) as transport:
        assert SshFar(transport, ("hush",)).run("echo a hush b") == [f"a {MASK} b"]


def test_a_script_that_takes_too_long_is_stopped(far: SshFar, account: Account) -> None:
    with pytest.raises(ProvisionError, match="too long"):
        far.run('sleep 31 "$HOME" || sleep 32; exec sh -c "sleep 33; : $HOME"', timeout=0.2)
    until(lambda: not list(account.processes()), "the end of what was started")


def test_a_script_ends_with_the_connection(far: SshFar, sshd: LocalSshd, account: Account) -> None:
    """Or two installations would write into one directory after somebody pressed Ctrl-C and tried again."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            far.run('sh -c "sleep 60; : $HOME"')
        except ConnectionLostError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: bool(list(account.processes())), "a process there")
    sshd.drop_connections()
    thread.join(10)
    assert len(failures) == 1
    until(lambda: not list(account.processes()), "the end of what was started")


def test_what_leaves_the_session_stays(far: SshFar, account: Account) -> None:
    far.run('setsid sh -c "sleep 2; : $HOME" >/dev/null 2>&1 </dev/null &')
    assert list(account.processes())
    until(lambda: not list(account.processes()), "its own end")


def test_a_bare_machine_is_seen_as_it_is(far: SshFar, account: Account, far_python: Path, sshd: LocalSshd) -> None:
    facts = look(far, "~/.longarm", str(far_python))
    assert facts.directory == f"{account.home}/.longarm"
    assert facts.writable
    assert not facts.is_ours
    assert not facts.is_foreign
    assert facts.free_bytes > 0
    assert facts.pythons[0].path == str(far_python)
    assert facts.pythons[0].complete
    assert facts.pythons[0].torch
    assert sshd.port in facts.taken_ports
    assert not facts.running.alive


def test_somebody_elses_files_are_seen(far: SshFar, account: Account) -> None:
    far.run("mkdir ~/other && touch ~/other/file")
    try:
        assert look(far, "~/other").is_foreign
    finally:
        far.run("rm -r ~/other")


def test_a_login_that_is_refused_is_final(ssh: SshSettings, tmp_path: Path) -> None:
    stranger = tmp_path / "key"
    stranger.write_text("no key")
    stranger.chmod(0o600)
    with (
        pytest.raises(ConfigurationError, match="Expected a private key"),
        connected(ssh.model_copy(update={"key_file": stranger}), None),
    ):
        pass


def test_an_unknown_host_is_refused_without_anybody_to_ask(ssh: SshSettings, tmp_path: Path) -> None:
    settings = ssh.model_copy(update={"known_hosts_file": tmp_path / "none"})
    with pytest.raises(ConfigurationError, match="SHA256:"), connected(settings, None):
        pass
    with connected(settings, lambda _: True) as transport:
        assert SshFar(transport).run("echo hello") == ["hello"]


def test_nobody_there_is_worth_another_try(ssh: SshSettings) -> None:
    with pytest.raises(ConnectionLostError), connected(ssh.model_copy(update={"port": 1}), None):
        pass


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Three files, one of them of 20 MB, whose bytes differ everywhere."""
    directory = tmp_path / "my policy"
    (directory / "more").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"".join(i.to_bytes(4) for i in range(5_000_000)))
    (directory / "more" / "it's.json").write_text("[]")
    return directory


def test_files_arrive_whole(far: SshFar, account: Account, policy: Path) -> None:
    name, files = read_policy(policy)
    assert name.startswith("my-policy-")
    target = f"{account.home}/{name}"
    seen: list[tuple[int, int]] = []
    total = sum(file.size for file in files)
    try:
        assert send(far, files, target, lambda sent, of: seen.append((sent, of))) == total
        assert seen[-1] == (total, total)
        there = list_files(far, target)
        assert there == {file.name: (file.size, file.digest) for file in files}
        assert set(there) == {"config.json", "model.safetensors", "more/it's.json"}
        assert not list_files(far, f"{target}.part")
    finally:
        far.run('rm -rf "$target"*', {"target": target})


def test_a_broken_off_upload_goes_on_where_it_stopped(ssh: SshSettings, account: Account, policy: Path) -> None:
    _, files = read_policy(policy)
    total = sum(file.size for file in files)
    target = f"{account.home}/sent"
    with connected(ssh, None) as transport, pytest.raises(ConnectionLostError):
        send(SshFar(transport), files, target, lambda sent, _: transport.close() if sent > total / 2 else None)
    with connected(ssh, None) as transport:
        far = SshFar(transport)
        assert not list_files(far, target), "half a policy must not look like one"
        # What lies there already and is wrong is found out
        far.run('printf x >"$target.part/config.json"; printf x >"$target.part/stray"', {"target": target})
        first: list[int] = []
        travelled = send(far, files, target, lambda sent, _: first.append(sent))
        assert 0 < travelled < 0.75 * total
        assert first[0] > 0.25 * total, "progress begins where the last one ended"
        assert list_files(far, target) == {file.name: (file.size, file.digest) for file in files}
        far.run('rm -rf "$target"', {"target": target})


def test_a_link_that_falls_silent_is_said_in_a_sentence(
    slow_link: SlowLink, account: Account, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """paramiko wrote tracebacks to the terminal, and we an empty reason."""
    ssh = slow_link.ssh.model_copy(update={"silence_timeout": 2.0, "connect_timeout": 1.0})
    with connected(ssh, None) as transport, pytest.raises(ConnectionLostError, match=r"broke \(.+\)"):
        send(SshFar(transport), read_directory(policy), f"{account.home}/silent", lambda *_: slow_link.proxy.silence(6))
    with pytest.raises(ConnectionLostError, match="does not complete the SSH handshake"), connected(ssh, None):
        pass
    assert "paramiko" not in caplog.text
    slow_link.proxy.silence(0)
    with connected(ssh, None) as transport:
        SshFar(transport).run("rm -rf ~/silent.part")


def test_a_wrong_beginning_is_sent_anew(policy: Path) -> None:
    files = {file.name: file for file in read_directory(policy)}
    big = files["model.safetensors"]
    (missing,) = compare([big], {big.name: (1000, "0" * 64)})
    assert missing.offset == 0
    (missing,) = compare([big], {big.name: (big.size + 1, big.digest)})
    assert missing.offset == 0
    assert compare([big], {big.name: (big.size, big.digest)}) == []


def test_a_policy_is_known_by_its_content(policy: Path) -> None:
    name, _ = read_policy(policy)
    assert name == read_policy(policy)[0]
    (policy / "config.json").write_text('{"a": 1}')
    assert name != read_policy(policy)[0]


def test_what_is_no_policy_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        read_policy(tmp_path)


def test_a_full_or_closed_disk_is_said(far: SshFar, account: Account, policy: Path) -> None:
    target = f"{account.home}/closed/policy"
    far.run('mkdir -p "$target.part"; chmod 500 "$target.part"', {"target": target})
    try:
        with pytest.raises(ProvisionError, match="does not take"):
            send(far, read_directory(policy), target)
    finally:
        far.run('chmod -R 700 "$HOME/closed"; rm -rf "$HOME/closed"')


def test_a_file_that_is_gone_is_not_the_far_sides_fault(far: SshFar, account: Account, policy: Path) -> None:
    files = read_directory(policy)
    (policy / "config.json").unlink()
    try:
        with pytest.raises(ProvisionError, match=r"cannot be read here: .*config\.json"):
            send(far, files, f"{account.home}/gone")
    finally:
        far.run("rm -rf ~/gone.part")


def test_a_server_without_sftp_is_said(account: Account, sshd: LocalSshd, ssh: SshSettings, workshop: Path) -> None:
    plain = LocalSshd(workshop / "plain-sshd", user=account.name, options=[sshd.options[0]])
    with plain:
        ssh.known_hosts_file.write_text(plain.known_hosts)
        with (
            connected(ssh.model_copy(update={"port": plain.port}), None) as transport,
            pytest.raises(ProvisionError, match="Subsystem sftp"),
        ):
            SshFar(transport).sftp()
