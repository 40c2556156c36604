"""The server image's own sshd: a robot gets to the service's two ports, and to nothing else whatever it asks for."""

import shlex
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images.conftest import CONFINED, docker

pytestmark = pytest.mark.timeout(1800)
READY = "LONGARM-TUNNEL-READY"
# As plain as ssh can be, and with every trick of its own allowed
SSH = (
    "ssh -F none -4 -p 2222 -i /tmp/key -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/tmp/known_hosts "
    "-o BatchMode=yes"
)
DO = "id; touch /tmp/was-here"


class Robot:
    """A client container beside a server container, with the robot's key."""

    def __init__(self, name: str, server: str) -> None:
        self.name = name
        self.server = server

    def do(self, script: str) -> tuple[int, str]:
        """Returns exit code and output of a script. $SSH reaches the server, $AT is user and host there."""
        given = f"SSH={shlex.quote(SSH)}; AT=longarm@{self.server}\n"
        done = docker("exec", self.name, "timeout", "20", "bash", "-c", given + script, check=False)
        return done.returncode, done.stdout + done.stderr

    def log(self) -> str:
        """Returns what the server has said."""
        done = docker("logs", self.server)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def robot(server_image: str, client_image: str, key: Path) -> Iterator[Robot]:
    """A server without a policy, whose sshd lets the robot in, and the robot."""
    network = server = robot = ""
    try:
        network = docker("network", "create", f"longarm-test-sshd-{uuid.uuid4().hex[:8]}").stdout.strip()
        public = key.with_suffix(".pub").read_text().strip()
        options = ["-d", "--network", network, *CONFINED, "--tmpfs", "/var/lib/longarm:uid=10001,mode=700"]
        options += ["--network-alias", "server", "-e", f"LONGARM_SSHD_AUTHORIZED_KEYS={public}"]
        server = docker("run", *options, server_image).stdout.strip()[:12]
        options = ["-d", "--network", network, *CONFINED, "--entrypoint", "sleep"]
        robot = docker("run", *options, client_image, "3600").stdout.strip()[:12]
        docker("exec", "-i", robot, "sh", "-c", "umask 077; cat >/tmp/key", input=key.read_text())
        there = Robot(robot, server)
        deadline = time.monotonic() + 120
        ready = ("python3", "/usr/local/lib/longarm/health.py", "LONGARM_SERVICE", "9100", "/readyz")
        while docker("exec", server, *ready, check=False).returncode:
            assert time.monotonic() < deadline, there.log()
            time.sleep(0.5)
        yield there
    finally:
        docker("rm", "-f", "-v", *filter(None, (server, robot)), check=False)
        docker("network", "rm", network, check=False)


def test_the_service_is_reached_through_it(robot: Robot) -> None:
    """gRPC greets with its settings frame; the metrics answer HTTP."""
    code, said = robot.do("$SSH -W 127.0.0.1:8080 $AT </dev/null | head -c 9 | od -An -tx1")
    assert (code, said.split()[3]) == (0, "04"), said
    code, said = robot.do("(echo -e 'GET /readyz HTTP/1.0\\n'; sleep 2) | $SSH -W 127.0.0.1:9100 $AT")
    assert "200 OK" in said
    assert said.rstrip().endswith("ready")


def test_the_service_is_not_reached_past_it(robot: Robot) -> None:
    """The service listens on the container's loopback: not for the neighbours, and not for the machine itself."""
    for port in (8080, 9100):
        code, said = robot.do(f"exec 3<>/dev/tcp/$(getent hosts server | cut -d' ' -f1)/{port}")
        assert code != 0
        assert "Connection refused" in said
    code, said = robot.do("exec 3<>/dev/tcp/$(getent hosts server | cut -d' ' -f1)/2222; head -c 4 <&3")
    assert (code, said) == (0, "SSH-")


REFUSED = {
    "another port of its loopback": ("$SSH -W 127.0.0.1:2222 $AT </dev/null", "forwarding failed"),
    "another machine": ("$SSH -W 192.0.2.1:80 $AT </dev/null", "forwarding failed"),
    "another name of its loopback": ("$SSH -W 127.0.0.2:8080 $AT </dev/null", "forwarding failed"),
    "a port there": ("$SSH -N -o ExitOnForwardFailure=yes -R 7777:127.0.0.1:22 $AT", "remote port forwarding failed"),
    "a terminal": ("$SSH -tt $AT </dev/null", "PTY allocation request failed"),
    "files": ("$SSH -s $AT sftp </dev/null", "subsystem request failed"),
    "a tunnel device": ("$SSH -N -o ExitOnForwardFailure=yes -w any $AT", "unnel device"),
    "root": ("$SSH root@server true", "Permission denied (publickey)"),
    "no key": ("$SSH -o PubkeyAuthentication=no $AT true", "Permission denied (publickey)"),
    "another key": (
        "ssh-keygen -qt ed25519 -N '' -f /tmp/other; ${SSH/key/other} -o IdentitiesOnly=yes $AT true",
        "Permission denied (publickey)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_everything_else_is_refused(robot: Robot, what: str) -> None:
    script, words = REFUSED[what]
    code, said = robot.do(script)
    assert code not in (0, 124), said
    assert words in said


# A session may be had, for sshd then sends without waiting; all of them run the same nothing
COMMANDS = {
    "a command": f"$SSH $AT '{DO}' </dev/null",
    "a shell": f"echo '{DO}' | $SSH -T $AT",
    "the agent": f"eval $(ssh-agent); $SSH -A $AT 'echo $SSH_AUTH_SOCK; {DO}' </dev/null; kill $SSH_AGENT_PID",
    "an environment": f"$SSH -o SetEnv='ENV=/etc/passwd BASH_ENV=/etc/passwd' $AT 'env; {DO}' </dev/null",
    "a display": f"DISPLAY=:0 $SSH -X $AT 'echo $DISPLAY; {DO}' </dev/null",
}


@pytest.mark.parametrize("what", COMMANDS)
def test_nothing_it_asks_for_is_run(robot: Robot, what: str) -> None:
    _, said = robot.do(COMMANDS[what])
    assert READY in said
    assert "uid=" not in said
    assert "longarm:x" not in said
    left = docker("exec", robot.server, "find", "/tmp").stdout
    assert "was-here" not in left
    assert "agent" not in left


def test_a_unix_socket_is_not_led_to(robot: Robot) -> None:
    connect = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/tmp/s'); print(s.recv(1))"
    listening = "for _ in $(seq 100); do [ -S /tmp/s ] && break; sleep 0.2; done"
    _, said = robot.do(f'$SSH -N -L /tmp/s:/run/x $AT & {listening}; python3 -c "{connect}"; kill %1')
    assert "b''" in said
    assert "refused streamlocal port forward" in robot.log()


@pytest.mark.parametrize("backend", ["paramiko", "openssh"])
def test_the_edges_own_tunnel_is_prompt(robot: Robot, backend: str) -> None:
    """A login that runs nothing at all would cost 44 ms a round trip, and the edge would warn of it."""
    script = f"""
import logging
from longarm_edge.tunnel.settings import SshSettings
from longarm_edge.tunnel.tunnel import Tunnel
logging.basicConfig(level="INFO")
more = dict(key_file="/tmp/key", known_hosts_file="/tmp/known_hosts", host_key_policy="accept-new", agent=False)
with Tunnel(SshSettings(host="server", port=2222, user="longarm", backend="{backend}", **more)) as tunnel:
    tunnel.open(15)
    print("open", tunnel.state.value)
"""
    code, said = robot.do(f"python3 -c {shlex.quote(script)}")
    assert code == 0, said
    assert "open up" in said
    assert "44 ms" not in said


def test_the_host_key_is_printed_at_the_start(robot: Robot) -> None:
    _, said = robot.do("ssh-keyscan -p 2222 -t ed25519 server 2>/dev/null | ssh-keygen -lf -")
    fingerprint = said.split()[1]
    assert fingerprint.startswith("SHA256:")
    assert f"LONGARM_EDGE_SSH__HOST_KEY_FINGERPRINT={fingerprint}" in robot.log()
