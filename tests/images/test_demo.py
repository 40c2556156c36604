"""compose.demo.yaml with all that it has but Grafana, whose image cannot be had everywhere: the service behind its
sshd, the edge with the simulated arm, and a Prometheus. Debian's Prometheus stands in for the image of it."""

import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from longarm_wire import exit_codes
from tests.images.conftest import BUILD_SECONDS, ROOT, docker

pytestmark = pytest.mark.timeout(2400)
PROMETHEUS = "longarm-test-prometheus"
STREAM_SECONDS = 20
PROMETHEUS_DOCKERFILE = f"""
FROM {os.environ.get("BASE_IMAGE", "python:3.12-slim-bookworm")}
RUN apt-get update && RUNLEVEL=1 apt-get install -y --no-install-recommends prometheus \\
 && install -d -o nobody -g nogroup /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> tuple[int, str]:
    """Returns status and text of an answer, (0, why) without one."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


class Demo:
    """The demo's containers, with ports of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.edge, self.prometheus = free_port(), free_port()
        self.project = f"longarm-test-{uuid.uuid4().hex[:8]}"
        # The way to rest shows in the log; and a busy machine may take its time to start a service again
        settings = {
            "LONGARM_EDGE_SAFETY__ON_STOP": "rest",
            "LONGARM_EDGE_SAFETY__REST_SECONDS": "2",
            "LONGARM_EDGE_SAFETY__MAX_OFFLINE": "240",
        }
        own = folder / "own.yaml"
        own.write_text(yaml.safe_dump({"services": {"edge": {"environment": settings}}}))
        self._files = ("-f", str(ROOT / "deploy/compose.demo.yaml"), "-f", str(own))
        self._environment = {
            **os.environ,
            "EDGE_PORT": str(self.edge),
            "PROMETHEUS_PORT": str(self.prometheus),
            "GRAFANA_PORT": str(free_port()),
            "PROMETHEUS_IMAGE": PROMETHEUS,
        }

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Runs docker compose and returns its standard output."""
        command = ("compose", "-p", self.project, *self._files, *arguments)
        return docker(*command, check=check, timeout=600, env=self._environment).stdout

    def health(self) -> tuple[int, str]:
        return get(f"http://127.0.0.1:{self.edge}/healthz")

    def metric(self, name: str) -> float:
        """Returns the value of a series of the edge, written as it is exported."""
        _, text = get(f"http://127.0.0.1:{self.edge}/metrics")
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    def query(self, query: str) -> list[float]:
        """Returns the values that Prometheus has for a query."""
        query = urllib.parse.urlencode({"query": query})
        status, text = get(f"http://127.0.0.1:{self.prometheus}/api/v1/query?{query}")
        return [float(series["value"][1]) for series in json.loads(text)["data"]["result"]] if status == 200 else []

    def until(self, condition: Callable[[], bool], what: str, timeout: float = 240) -> None:
        """Returns when condition holds; fails the test with the logs if it does not in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout:g} s: {what}\n{self.compose('logs', '--tail=60', check=False)}")
            time.sleep(0.2)

    def inspect(self, service: str, template: str) -> str:
        container = self.compose("ps", "-aq", service).strip()
        return docker("inspect", "-f", template, container).stdout.strip()


@pytest.fixture(scope="module")
def demo(server_image: str, demo_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo while the arm moves and Prometheus looks on."""
    docker("build", "-t", PROMETHEUS, "-", input=PROMETHEUS_DOCKERFILE, timeout=BUILD_SECONDS)
    demo = Demo(tmp_path_factory.mktemp("demo"))
    try:
        demo.compose("up", "-d", "--no-build", "prepare", "server", "edge", "prometheus")
        demo.until(lambda: demo.health() == (200, "streaming\n"), "the arm moves")
        demo.until(lambda: demo.query("up") == [1.0, 1.0], "Prometheus has scraped both sides")
        yield demo
    finally:
        demo.compose("down", "-v", "--timeout", "5", check=False)


# The tests below are one story, told in this order
def test_it_streams_without_an_idle_tick(demo: Demo) -> None:
    def counts(outcome: str) -> float:
        return demo.metric(f'longarm_edge_control_ticks_total{{outcome="{outcome}"}}')

    idle, acted = counts("idle"), counts("action")
    answered = demo.metric('longarm_edge_observations_total{outcome="answered"}')
    time.sleep(STREAM_SECONDS)
    assert counts("idle") == idle, demo.compose("logs", "--tail=30", "edge")
    assert counts("action") - acted > 0.9 * 30 * STREAM_SECONDS
    assert demo.metric('longarm_edge_observations_total{outcome="answered"}') - answered >= 2
    assert demo.inspect("edge", "{{.State.Health.Status}}") == "healthy"


def test_one_prometheus_sees_both_sides(demo: Demo) -> None:
    for name in (
        'longarm_edge_control_ticks_total{outcome="action"}',
        "longarm_service_inference_duration_seconds_count",
    ):
        demo.until(lambda name=name: max(demo.query(name), default=0) > 0, name)
    # The recording rules are loaded and find what they are made of
    demo.until(lambda: bool(demo.query("instance:longarm_edge_control_ticks:rate1m")), "recorded series")


def test_confinement_holds_while_it_runs(demo: Demo) -> None:
    for service in ("server", "edge"):
        assert demo.inspect(service, "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}") == "true [ALL]"
        script = "id -u; touch /usr/local/x 2>&1 || true; grep -h CapEff /proc/self/status"
        uid, refused, capabilities = demo.compose("exec", "-T", service, "sh", "-c", script).splitlines()
        assert uid == "10001"
        assert "Read-only file system" in refused
        assert int(capabilities.split()[1], 16) == 0


def test_the_network_remembers_what_the_way_carries(demo: Demo) -> None:
    """Or the first request after a pause would feel its way again."""
    name = "/proc/sys/net/ipv4/tcp_slow_start_after_idle"
    assert demo.compose("exec", "-T", "edge", "cat", name) == "0\n"


def test_a_killed_server_comes_back_and_the_edge_recovers_by_itself(demo: Demo) -> None:
    # Everything in it dies at once, and nothing outside is told
    demo.compose("exec", "-T", "server", "sh", "-c", "kill -9 -1", check=False)
    demo.until(lambda: demo.health()[0] == 503, "the edge notices", timeout=60)
    demo.until(lambda: demo.health() == (200, "streaming\n"), "the arm moves again")
    assert demo.inspect("server", "{{.RestartCount}}") == "1"
    assert demo.inspect("edge", "{{.RestartCount}}") == "0"
    assert demo.metric('longarm_edge_reconnects_total{reason="session_unknown"}') >= 1
    # Its sshd is the same as before: a new host key would have been refused
    log = demo.compose("logs", "--no-log-prefix", "server")
    fingerprints = {line.rpartition(" ")[2] for line in log.splitlines() if "HOST_KEY_FINGERPRINT" in line}
    assert len(fingerprints) == 1


def test_docker_stop_leaves_the_arm_by_rule(demo: Demo) -> None:
    began = time.monotonic()
    demo.compose("stop", "edge")
    assert time.monotonic() - began < 75  # stop_grace_period; beyond it Docker would have killed it
    assert demo.inspect("edge", "{{.State.ExitCode}}") == str(exit_codes.DONE)
    log = demo.compose("logs", "edge")
    assert "moving to the start pose in 2.0 s" in log
    assert "stopped by SIGTERM" in log


def test_docker_stop_drains_the_server(demo: Demo) -> None:
    began = time.monotonic()
    demo.compose("stop", "server")
    assert time.monotonic() - began < 30
    assert demo.inspect("server", "{{.State.ExitCode}}") == str(exit_codes.DONE)
    assert "SIGTERM: stopping" in demo.compose("logs", "server")


@pytest.mark.parametrize("name", ["server", "edge", "demo"])
def test_compose_accepts_the_files_with_their_examples(engine: None, name: str, tmp_path: Path) -> None:
    env = tmp_path / "own.env"
    env.write_text((ROOT / f"deploy/{name}.env.example").read_text())
    files = [ROOT / f"deploy/compose.{name}.yaml"]
    files += [ROOT / "deploy/compose.server.gpu.yaml"] if name == "server" else []
    # The compose files name env files beside them, which a fresh checkout does not have
    for file in files:
        text = file.read_text().replace(f"env_file: {name}.env", f"env_file: {env}")
        (tmp_path / file.name).write_text(text)
    options = [part for file in files for part in ("-f", str(tmp_path / file.name))]
    done = docker("compose", "--env-file", str(env), *options, "config", "--format", "json")
    services = json.loads(done.stdout)["services"]
    assert all("image" in service for service in services.values())
    if name == "server":
        assert services["server"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
