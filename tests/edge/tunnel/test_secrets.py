"""Who is told the password and the passphrase, and who is not: an SSH server may ask for anything."""

from pathlib import Path

import pytest
from tests.edge.tunnel.prying_sshd import PryingSshd

from longarm_edge.tunnel import Cause, PermanentTunnelError
from longarm_edge.tunnel.local_sshd import make_key

PASSWORD = "hunter2-and-more"
PASSPHRASE = "open sesame"
USER = "root"


@pytest.fixture
def prying(lab, tmp_path: Path):
    """Asks in the words of ssh itself; its name, port aside, is the target's."""
    prompts = [
        f"{USER}@127.0.0.1's password: ",
        f"Enter passphrase for key '{tmp_path / 'locked'}': ",
        "Passphrase, please: ",
    ]
    sshd = PryingSshd(tmp_path, prompts)
    lab.stack.callback(sshd.close)
    return sshd


@pytest.fixture
def locked_key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "locked", passphrase=PASSPHRASE)


@pytest.mark.parametrize("proxy", ["ProxyJump gate", "ProxyCommand ssh -F {config} -W %h:%p gate"])
def test_a_jump_host_that_asks_for_them_is_told_neither(
    lab, prying, locked_key: Path, tmp_path: Path, proxy: str
) -> None:
    """It may choose its words, and bear the target's name: it is another ssh that asks for it."""
    if lab.backend == "paramiko" and proxy.startswith("ProxyCommand"):
        pytest.skip("paramiko takes no ProxyCommand")
    target = lab.sshd("target")
    config = tmp_path / "config"
    config.write_text(
        f"Host gate\n  HostName 127.0.0.1\n  Port {prying.port}\n  User {USER}\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile /dev/null\n  IdentityFile {locked_key}\n"
        f"Host gpu\n  HostName 127.0.0.1\n  {proxy.format(config=config)}\n"
    )
    known = tmp_path / "known_hosts"
    known.write_text(prying.known_hosts + target.known_hosts)
    secrets = {"password": PASSWORD, "key_file": locked_key, "passphrase": PASSPHRASE}
    settings = lab.settings(target, host="gpu", user=USER, config_file=config, known_hosts_file=known, **secrets)
    with pytest.raises(PermanentTunnelError) as caught:
        lab.up(settings)
    assert caught.value.cause is Cause.AUTHENTICATION
    assert prying.heard or lab.backend == "paramiko"  # which does not even try
    assert not any(prying.heard)
    if lab.backend == "paramiko":
        assert "a jump host has to take a key" in caught.value.message


def test_a_target_that_asks_for_the_passphrase_is_not_told(lab, prying, locked_key: Path, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(prying.known_hosts)
    secrets = {"password": PASSWORD, "key_file": locked_key, "passphrase": PASSPHRASE}
    settings = lab.settings(None, port=prying.port, user=USER, known_hosts_file=known, **secrets)
    with pytest.raises(PermanentTunnelError) as caught:
        lab.up(settings)
    assert caught.value.cause is Cause.AUTHENTICATION
    assert prying.heard.count(PASSWORD) == 1  # a second wrong one would count against the account
    assert PASSPHRASE not in prying.heard


def test_a_password_reaches_the_target_behind_a_jump_host(lab, account, tmp_path: Path) -> None:
    jump, target = lab.sshd("jump"), lab.sshd("target", options=["PasswordAuthentication yes"])
    config = tmp_path / "config"
    config.write_text(
        f"Host gate\n  HostName 127.0.0.1\n  Port {jump.port}\n  User {jump.user}\n  IdentityFile {jump.client_key}\n"
        "Host gpu\n  HostName 127.0.0.1\n  ProxyJump gate\n"
    )
    login = {"user": account.name, "key_file": None, "password": account.password}
    known = lab.known_hosts(jump, target)
    lab.up(lab.settings(target, host="gpu", config_file=config, known_hosts_file=known, **login))


@pytest.mark.skipif(not Path("/etc/pam.d/sshd").exists(), reason="sshd asks by keyboard-interactive through PAM")
def test_a_password_gets_in_where_the_server_only_asks_for_it(lab, account) -> None:
    """As where PasswordAuthentication is off and nobody thought of KbdInteractiveAuthentication."""
    sshd = lab.sshd(options=["UsePAM yes", "KbdInteractiveAuthentication yes"])
    lab.up(lab.settings(sshd, user=account.name, key_file=None, password=account.password))
    assert "Accepted keyboard-interactive" in sshd.log.read_text()
