"""What ssh runs when it has a question: hands it to the tunnel's process and prints the answer.

usage: python ask.py SOCKET QUESTION [ARGUMENT ...]

Imports nothing of Longarm and little else: it runs in an isolated interpreter several times per connection, and
ssh waits for it.
"""

import socket
import sys

# The first byte of an answer. What ends without it is a refusal
ANSWERED = b"+"


def main(path: str, question: list[str]) -> int:
    """Returns 0 if there was an answer. ssh takes anything else as a refusal."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall("\0".join(question).encode() + b"\n")
        # A dialled connection comes as a file descriptor beside the answer
        answer, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        while piece := connection.recv(4096):
            answer += piece
    if not answer.startswith(ANSWERED):
        return 1
    if descriptors:
        with socket.socket(socket.AF_UNIX, fileno=sys.stdout.fileno()) as to_ssh:
            socket.send_fds(to_ssh, [b"\0"], descriptors)
            to_ssh.detach()
    else:
        sys.stdout.write(answer.removeprefix(ANSWERED).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
