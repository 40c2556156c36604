"""Answers ssh's questions while it connects: is this the right host, what is the secret, where is the connection.

ssh asks by running ask.py, which asks here over a socket in a private directory. So secrets are on no command line, in
no environment and in no file, and both backends share one way to dial and one policy about host keys.
"""

import shlex
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from longarm_edge.tunnel import ask
from longarm_edge.tunnel.errors import TunnelError
from longarm_edge.tunnel.near_end import place_for_sockets

# Answers with text or a connection. None, or a TunnelError, refuses
Answer = Callable[..., str | socket.socket | None]


class Questions:
    """A private place where ssh can ask. Use as a context manager, for as long as ssh connects.

    Attributes:
      directory: For further files of the connection; gone at the end.
      error: What the last refusal was about.
    """

    def __init__(self, answers: dict[str, Answer]) -> None:
        """Prepares.

        Args:
          answers: From the name of a question to what answers it, called with the question's arguments.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="longarm-ssh-", dir=place_for_sockets())
        self.directory = Path(self._temporary.name)
        self.error: TunnelError | None = None
        self._answers = answers
        self._server = _Server(str(self.directory / "socket"), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="questions", daemon=True)

    def command(self, question: str) -> str:
        """Returns the command with which ssh asks, quoted for ssh and for the shell; arguments go behind it."""
        # Isolated and without site: ssh waits for it
        words = [sys.executable, "-I", "-S", ask.__file__, str(self.directory / "socket"), question]
        return shlex.join(words).replace("'", '"')

    def program(self, question: str) -> Path:
        """Returns a program that asks, for where ssh takes no command; which process runs it comes first."""
        file = self.directory / question
        file.write_text(f'#!/bin/sh\nexec {self.command(question)} "$PPID" "$@"\n')
        file.chmod(0o700)
        return file

    def answer(self, name: str, arguments: list[str]) -> str | socket.socket | None:
        """Returns the answer to a question, None to refuse."""
        try:
            return self._answers[name](*arguments)
        except TunnelError as error:
            self.error = error
            return None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._temporary.cleanup()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


def _handler(questions: Questions) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            name, *arguments = self.rfile.readline().decode().removesuffix("\n").split("\0")
            answer = questions.answer(name, arguments)
            if isinstance(answer, socket.socket):
                socket.send_fds(self.connection, [ask.ANSWERED], [answer.fileno()])
            elif answer is not None:
                self.wfile.write(ask.ANSWERED + answer.encode())

    return Handler
