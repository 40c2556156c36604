"""Getting in: keys, passphrases, passwords, the agent, jump hosts, and what is said when it does not work."""

import contextlib
import getpass
import os
import re
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from longarm_edge.tunnel import Cause, PermanentTunnelError, State, TunnelError, Warned
from longarm_edge.tunnel.local_sshd import descendants, make_key


def fails(lab, settings, cause: Cause, words: str) -> TunnelError:
    """Checks that it ends at a step for good."""
    with pytest.raises(PermanentTunnelError, match=words) as caught:
        lab.up(settings)
    assert caught.value.cause is cause
    return caught.value


def test_a_key_gets_in_and_two_ports_lead_there(lab) -> None:
    port, metrics_port = free_port(), free_port()
    with socket.create_server(("127.0.0.1", 0)) as metrics:
        settings = lab.settings(lab.sshd(), local_port=port, local_metrics_port=metrics_port)
        tunnel = lab.up(settings.model_copy(update={"metrics_port": metrics.getsockname()[1]}))
        for address in (tunnel.address, f"127.0.0.1:{port}"):
            HealthStub(lab.channel(address)).Check(HealthCheckRequest(), timeout=10)
        assert tunnel.metrics_address == f"127.0.0.1:{metrics_port}"
        with socket.create_connection(("127.0.0.1", metrics_port)) as scraper:
            scraper.sendall(b"GET")
            with metrics.accept()[0] as server:
                assert server.recv(3) == b"GET"
                server.sendall(b"200")
            assert scraper.recv(4) == b"200"
            assert scraper.recv(1) == b""


def test_a_temporary_directory_whose_name_is_no_part_of_an_address_will_do(lab, monkeypatch) -> None:
    """A socket's address is short, and every program has signs of its own that it cannot have in one."""
    place = lab.directory / f"100% of a long name: {'x' * 60}"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    lab.up(lab.settings(lab.sshd()))


def test_no_port_is_open_that_nobody_asked_for(lab) -> None:
    sshd = lab.sshd()
    before = listening()
    tunnel = lab.up(lab.settings(sshd))
    assert listening() == before
    assert tunnel.metrics_address == ""


def listening() -> set[str]:
    """Returns the ports on which this process and those below it listen, as the kernel writes them."""
    held = set()
    for process_id in (os.getpid(), *descendants(os.getpid())):
        for descriptor in Path(f"/proc/{process_id}/fd").glob("*"):
            with contextlib.suppress(OSError):
                held.add(str(descriptor.readlink()))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_a_login_may_take_longer_than_silence(lab) -> None:
    """Slow modules of PAM, a name server that does not answer: sshd says nothing for seconds and is well."""
    keys = lab.directory / "sshd" / "authorized_keys"
    command = f'AuthorizedKeysCommand /bin/sh -c "sleep 1.5; cat {keys}"'
    sshd = lab.sshd(options=[command, f"AuthorizedKeysCommandUser {getpass.getuser()}", "AuthorizedKeysFile none"])
    lab.up(lab.settings(sshd))
    assert lab.seen(State.DOWN) == 0


def test_a_key_that_the_server_does_not_know_ends_it(lab, tmp_path: Path) -> None:
    settings = lab.settings(lab.sshd(), key_file=make_key(tmp_path / "other"))
    fails(lab, settings, Cause.AUTHENTICATION, "KEY_FILE")


def test_a_passphrase_opens_the_key(lab, tmp_path: Path) -> None:
    sshd = lab.sshd()
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    sshd.authorized_keys.write_text(key.with_suffix(".pub").read_text())
    file = tmp_path / "passphrase"
    file.write_text("open sesame\n")
    file.chmod(0o600)
    lab.up(lab.settings(sshd, key_file=key, passphrase_file=file))


def test_a_server_that_has_enough_after_one_try_ends_it(lab, tmp_path: Path) -> None:
    """It hangs up in place of a refusal, and would do so again and again."""
    settings = lab.settings(lab.sshd(options=["MaxAuthTries 1"]), key_file=make_key(tmp_path / "other"))
    fails(lab, settings, Cause.AUTHENTICATION, "KEY_FILE")


@pytest.mark.parametrize(("passphrase", "words"), [("close sesame", "is wrong"), ("", "has a passphrase")])
def test_a_passphrase_that_does_not_fit_ends_it(lab, tmp_path: Path, passphrase: str, words: str) -> None:
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    settings = lab.settings(lab.sshd(), key_file=key, passphrase=passphrase)
    fails(lab, settings, Cause.PASSPHRASE, words)


def test_a_file_that_is_no_key_ends_it(lab, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("no key\n")
    junk.chmod(0o600)
    fails(lab, lab.settings(lab.sshd(), key_file=junk), Cause.KEY_FILE, "Expected a private key")


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An agent, as the function that gives it a key."""
    said = subprocess.run(["ssh-agent", "-s"], check=True, capture_output=True, text=True).stdout
    variables = dict(re.findall(r"(SSH_\w+)=([^;]+);", said))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ask = tmp_path / "ask"
    ask.write_text("#!/bin/sh\necho open sesame\n")
    ask.chmod(0o700)
    environment = {**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    yield lambda key: subprocess.run(["ssh-add", "-q", key], check=True, env=environment)
    subprocess.run(["ssh-agent", "-k"], check=True, capture_output=True)


def test_the_agent_lets_in(lab, agent) -> None:
    sshd = lab.sshd()
    agent(sshd.client_key)
    lab.up(lab.settings(sshd, key_file=None, agent=True))


def test_the_agent_opens_a_key_whose_passphrase_is_not_set(lab, agent, tmp_path: Path) -> None:
    sshd = lab.sshd()
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    sshd.authorized_keys.write_text(key.with_suffix(".pub").read_text())
    agent(key)
    lab.up(lab.settings(sshd, key_file=key, agent=True))


def test_no_key_and_no_password_says_so(lab) -> None:
    sshd = lab.sshd(options=["PasswordAuthentication yes"])
    config = lab.directory / "config"
    config.write_text("IdentityFile /nowhere\n")
    settings = lab.settings(sshd, key_file=None, config_file=config)
    fails(lab, settings, Cause.AUTHENTICATION, "PASSWORD_FILE")


@pytest.fixture
def password_sshd(lab):
    return lab.sshd(options=["PasswordAuthentication yes"])


def test_a_password_gets_in_and_is_never_shown(
    lab, password_sshd, account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, caplog
) -> None:
    """A password on a command line is there for every user of the machine to read."""
    monkeypatch.setenv("LONGARM_EDGE_SSH__PASSWORD", account.password)
    seen: list[bytes] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            for process_id in descendants(os.getpid()):
                for name in ("cmdline", "environ"):
                    try:
                        seen.append(Path(f"/proc/{process_id}/{name}").read_bytes())
                    except OSError:
                        continue

    looking = threading.Thread(target=look)
    looking.start()
    try:
        lab.up(lab.settings(password_sshd, user=account.name, key_file=None, password=account.password))
    finally:
        done.set()
        looking.join()
    assert any(b"longarm_edge.tunnel" in line for line in seen)
    assert not [line for line in seen if account.password.encode() in line]
    shown = capfd.readouterr()
    assert account.password not in shown.out + shown.err + caplog.text + repr(lab.events)


def test_a_wrong_password_ends_it_at_the_first_try(lab, password_sshd, account) -> None:
    """Trying again would get the account locked."""
    settings = lab.settings(password_sshd, user=account.name, key_file=None, password="wrong")
    fails(lab, settings, Cause.AUTHENTICATION, "PASSWORD_FILE")
    assert password_sshd.log.read_text().count("Failed password") == 1


def test_an_account_without_a_shell_will_do(lab, password_sshd, account_without_shell) -> None:
    account = account_without_shell
    lab.up(lab.settings(password_sshd, user=account.name, key_file=None, password=account.password))
    warned = [event for event in lab.events if isinstance(event, Warned)]
    assert bool(warned) == (lab.backend == "openssh")


def test_a_server_without_sessions_will_do(lab) -> None:
    """The no-op command has nowhere to run. The tunnel works, if slower."""
    lab.up(lab.settings(lab.sshd(options=["MaxSessions 0"])))
    assert any(isinstance(event, Warned) for event in lab.events)


def test_an_alias_of_the_ssh_configuration_leads_through_a_jump_host(lab, tmp_path: Path) -> None:
    jump, target = lab.sshd("jump"), lab.sshd("target")
    config = tmp_path / "config"
    config.write_text(
        f"Include {tmp_path}/more\n"
        f"Host gate\n  HostName 127.0.0.1\n  Port {jump.port}\n  User {jump.user}\n  IdentityFile {jump.client_key}\n"
    )
    (tmp_path / "more").write_text(
        f"Host gpu\n  HostName 127.0.0.1\n  Port {target.port}\n  User {target.user}\n"
        f"  IdentityFile {target.client_key}\n  ProxyJump gate\n"
    )
    # What is pinned is the target; the jump host goes by known_hosts
    pin, known = fingerprint(target), lab.known_hosts(jump)
    lab.up(lab.settings(None, host="gpu", config_file=config, known_hosts_file=known, host_key_fingerprint=pin))
    assert "Accepted publickey" in jump.log.read_text()
    assert "Accepted publickey" in target.log.read_text()


def test_a_jump_host_has_to_be_known_as_well(lab, tmp_path: Path) -> None:
    jump, target = lab.sshd("jump"), lab.sshd("target")
    config = tmp_path / "config"
    config.write_text(f"Host 127.0.0.1\n  ProxyJump {jump.user}@localhost:{jump.port}\n")
    settings = lab.settings(target, config_file=config)
    error = fails(lab, settings, Cause.HOST_KEY_UNKNOWN, "is not known yet")
    assert f"[localhost]:{jump.port}" in error.message


def test_a_jump_host_that_forwards_nothing(lab, tmp_path: Path) -> None:
    jump, target = lab.sshd("jump", options=["PermitOpen none"]), lab.sshd("target")
    jump.authorized_keys.write_text(target.client_key.with_suffix(".pub").read_text())
    config = tmp_path / "config"
    config.write_text(
        f"Host gpu\n  HostName 127.0.0.1\n  ProxyJump gate\n"
        f"Host gate\n  HostName 127.0.0.1\n  Port {jump.port}\n  IdentityFile {target.client_key}\n"
    )
    known = lab.known_hosts(jump, target)
    settings = lab.settings(target, host="gpu", config_file=config, known_hosts_file=known)
    fails(lab, settings, Cause.FORWARD_REFUSED, "jump host")


def test_a_wrong_key_behind_a_jump_host_ends_it(lab, tmp_path: Path) -> None:
    """ssh says of the jump host that the login worked."""
    jump, target = lab.sshd("jump"), lab.sshd("target")
    target.authorized_keys.write_text("")
    config = tmp_path / "config"
    config.write_text(
        f"Host gpu\n  HostName 127.0.0.1\n  ProxyJump gate\n"
        f"Host gate\n  HostName 127.0.0.1\n  Port {jump.port}\n  IdentityFile {jump.client_key}\n"
    )
    known = lab.known_hosts(jump, target)
    settings = lab.settings(target, host="gpu", key_file=None, config_file=config, known_hosts_file=known)
    fails(lab, settings, Cause.AUTHENTICATION, "KEY_FILE")


def fingerprint(sshd) -> str:
    printed = subprocess.run(["ssh-keygen", "-lf", sshd.host_key], check=True, capture_output=True, text=True).stdout
    return printed.split()[1]


def stumbles(lab, settings, cause: Cause, words: str) -> None:
    """Checks that the first attempt fails at a step and that another one follows."""
    tunnel = lab.tunnel(settings)
    with pytest.raises(TunnelError):
        tunnel.open(0.01)
    lab.wait(lambda: lab.seen(State.DOWN) > 0 and lab.seen(State.CONNECTING) > 1)
    down = next(event for event in lab.events if getattr(event, "state", None) is State.DOWN)
    assert down.cause is cause
    assert re.search(words, down.message)
    with pytest.raises(TunnelError, match=words) as caught:
        tunnel.open(0.01)
    assert caught.value.cause is cause
    assert tunnel.failure is None


def test_a_name_without_address(lab) -> None:
    stumbles(lab, lab.settings(lab.sshd(), host="no-such-host.invalid"), Cause.DNS, "no-such-host.invalid")


def test_a_port_where_nobody_listens(lab) -> None:
    sshd = lab.sshd()
    sshd.stop()
    stumbles(lab, lab.settings(sshd), Cause.TCP, "Connection refused")


def test_a_port_that_takes_the_connection_and_says_nothing(lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = lab.settings(lab.sshd(), port=other.getsockname()[1], connect_timeout=1)
        stumbles(lab, settings, Cause.HANDSHAKE, "(says nothing for 1 s|timed out during banner exchange).*SSH server")


def test_a_server_that_forwards_nothing(lab) -> None:
    settings = lab.settings(lab.sshd(options=["PermitOpen none"]))
    fails(lab, settings, Cause.FORWARD_REFUSED, "PermitOpen")


def test_a_refused_metrics_port_is_not_the_service(lab) -> None:
    """Prometheus asks for it all the time, also while the service is not there yet."""
    nobody, metrics_port = free_port(), free_port()
    sshd = lab.sshd(options=[f"PermitOpen 127.0.0.1:{nobody}"])
    settings = lab.settings(sshd, service_port=nobody, metrics_port=nobody - 1, local_metrics_port=metrics_port)
    tunnel = lab.tunnel(settings)
    with pytest.raises(TunnelError):
        tunnel.open(0.01)
    lab.wait(lambda: tunnel.state is State.WAITING and "nothing listens" in tunnel.message)
    with socket.create_connection(("127.0.0.1", metrics_port)) as scraper:
        assert scraper.recv(1) == b""
    with pytest.raises(TunnelError, match="nothing listens"):
        tunnel.open(1)
    assert tunnel.failure is None


def test_a_local_port_that_is_taken(lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = lab.settings(lab.sshd(), local_port=other.getsockname()[1])
        fails(lab, settings, Cause.LOCAL_PORT, "LONGARM_EDGE_SSH__LOCAL_PORT")


def test_a_missing_ssh_program(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    if lab.backend != "openssh":
        pytest.skip("paramiko needs no ssh")
    settings = lab.settings(lab.sshd())
    monkeypatch.setenv("PATH", "/nowhere")
    fails(lab, settings, Cause.CONFIGURATION, "BACKEND=paramiko")
