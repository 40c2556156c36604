"""An SSH server that is after secrets: it asks for whatever it likes, lets nobody in, and keeps what it is told."""

import contextlib
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import paramiko

from longarm_edge.tunnel.local_sshd import make_key


class PryingSshd:
    """Listens on the loopback until closed.

    Attributes:
      prompts: What it asks in keyboard-interactive logins.
      heard: Every answer and every password it was given.
    """

    def __init__(self, directory: Path, prompts: Sequence[str]) -> None:
        self.prompts = prompts
        self.heard: list[str] = []
        key = make_key(directory / "prying_key")
        self._key = paramiko.PKey.from_path(key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.known_hosts = f"[127.0.0.1]:{self.port} {' '.join(key.with_suffix('.pub').read_text().split()[:2])}\n"
        self._transports: list[paramiko.Transport] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for transport in self._transports:
            transport.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                transport = paramiko.Transport(self._listener.accept()[0])
                self._transports.append(transport)
                transport.add_server_key(self._key)
                with contextlib.suppress(paramiko.SSHException, EOFError):
                    transport.start_server(server=_Login(self))


class _Login(paramiko.ServerInterface):
    def __init__(self, sshd: PryingSshd) -> None:
        self._sshd = sshd

    def get_allowed_auths(self, username: str) -> str:
        return "keyboard-interactive,password"

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:
        return paramiko.InteractiveQuery("", "", *((prompt, False) for prompt in self._sshd.prompts))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        self._sshd.heard += responses
        return paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        self._sshd.heard.append(password)
        return paramiko.AUTH_FAILED
