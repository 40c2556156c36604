"""What is said when an SSH server lets nobody in: the reason, and not what it looks like from afar."""

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.edge.tunnel.test_login import fails, stumbles

from longarm_edge.tunnel import Cause, State, TunnelError

needs_pam = pytest.mark.skipif(not Path("/etc/pam.d/sshd").exists(), reason="there is no PAM for sshd")


@pytest.mark.parametrize(
    "options",
    [
        ["PasswordAuthentication yes"],
        pytest.param(["PasswordAuthentication yes", "UsePAM yes"], marks=needs_pam),
        pytest.param(["KbdInteractiveAuthentication yes", "UsePAM yes"], marks=needs_pam),
    ],
    ids=["sshd", "PAM", "PAM asks"],
)
def test_a_password_that_has_expired(lab, account_with_expired_password, options: list[str]) -> None:
    """sshd lets such an account in to change it, and forwards nothing."""
    account = account_with_expired_password
    sshd = lab.sshd(options=options)
    settings = lab.settings(sshd, user=account.name, key_file=None, password=account.password)
    fails(lab, settings, Cause.AUTHENTICATION, rf"has expired.*ssh -p {sshd.port} {account.name}@127\.0\.0\.1 ")


def test_a_server_that_takes_passwords_alone_is_no_reason_to_look_at_the_key(lab) -> None:
    sshd = lab.sshd(options=["PubkeyAuthentication no", "PasswordAuthentication yes"])
    error = fails(lab, lab.settings(sshd), Cause.AUTHENTICATION, "takes no key: set LONGARM_EDGE_SSH__PASSWORD_FILE")
    assert "no key to offer" not in error.message


def test_a_server_that_takes_keys_alone_is_no_reason_to_look_at_the_password(lab) -> None:
    config = lab.directory / "config"
    config.write_text("IdentityFile /nowhere\n")
    settings = lab.settings(lab.sshd(), key_file=None, config_file=config, password="hunter2")
    words = "takes no password.*KEY_FILE" if lab.backend == "paramiko" else r"\(publickey\).*KEY_FILE"
    fails(lab, settings, Cause.AUTHENTICATION, words)


@pytest.mark.parametrize("options", [["KexAlgorithms diffie-hellman-group1-sha1"], ["Ciphers 3des-cbc"]])
def test_a_server_without_an_algorithm_in_common_ends_it(lab, options: list[str]) -> None:
    """No second try can end otherwise."""
    settings = lab.settings(lab.sshd(options=options))
    fails(lab, settings, Cause.HANDSHAKE, "no (algorithm in common|matching).*up to date")


def test_an_address_in_brackets(lab) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("There is no IPv6 here")
    sshd = lab.sshd(options=["ListenAddress ::1"])
    known = lab.known_hosts(sshd)
    known.write_text(known.read_text().replace("127.0.0.1", "::1"))
    lab.up(lab.settings(sshd, host="[::1]", known_hosts_file=known))


def test_a_server_with_too_many_logins_under_way(lab) -> None:
    sshd = lab.sshd(options=["MaxStartups 1:100:1"])
    with taking_the_only_place(sshd.port):
        stumbles(lab, lab.settings(sshd), Cause.HANDSHAKE, r"turns new connections away.*MaxStartups")


@contextmanager
def taking_the_only_place(port: int) -> Iterator[None]:
    while True:
        with socket.create_connection(("127.0.0.1", port)) as idle:
            if idle.recv(4) == b"SSH-":
                yield
                return
        time.sleep(0.02)


@contextmanager
def answering(answer: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """Listens and has every connection answered, with the count of those before it; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            count = 0
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as connection, suppress(OSError):
                        answer(connection, count)
                    count += 1

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def hang_up(connection: socket.socket, count: int) -> None:
    """Closes with and without the client's version read in turn: one is an end to the client, the other a reset."""
    connection.recv(4096, socket.MSG_PEEK if count % 2 else 0)


def test_a_server_that_hangs_up_is_one_line_for_a_while(lab, caplog) -> None:
    """How it ends is for chance to say. What is said of it must not change with it, nor flood the log."""
    caplog.set_level(logging.WARNING)
    with answering(hang_up) as port:
        tunnel = lab.tunnel(lab.settings(lab.sshd(), port=port))
        with pytest.raises(TunnelError):
            tunnel.open(0.01)
        lab.wait(lambda: lab.seen(State.DOWN) > 3)
    down = {event.message for event in lab.events if getattr(event, "state", None) is State.DOWN}
    assert all("hangs up" in message and "MaxStartups" in message for message in down)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_a_server_of_another_kind(lab) -> None:
    def answer(connection: socket.socket, _: int) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

    with answering(answer) as port:
        stumbles(lab, lab.settings(lab.sshd(), port=port), Cause.HANDSHAKE, "SSH server")


@pytest.mark.parametrize("payload", [b"\x01\0\0\0\x02\0\0\0\x05" + "Gäst\x1b".encode("latin1"), b"\x14" + b"\xff" * 40])
def test_a_server_that_does_not_speak_text(lab, payload: bytes) -> None:
    """A goodbye in its own language, and an offer of algorithms that is none: no reason to fall over."""

    def answer(connection: socket.socket, _: int) -> None:
        padding = 8 - (len(payload) + 5) % 8 + 8
        packet = struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)
        connection.sendall(b"SSH-2.0-other\r\n" + packet)
        while connection.recv(4096):
            pass

    with answering(answer) as port:
        settings = lab.settings(lab.sshd(), port=port)
        stumbles(lab, settings, Cause.HANDSHAKE, "SSH handshake|ended during the login")
    assert not any("\x1b" in getattr(event, "message", "") for event in lab.events)
