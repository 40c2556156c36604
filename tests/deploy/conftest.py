"""A real Prometheus with the rules as they are deployed, and a real run for it to look at: the end-to-end tests' own
with the service's metrics port known and a GPU that the service believes in."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from deploy.prometheus.render import FOLDER

from longarm_edge.tunnel.settings import SshSettings
from longarm_service.policy import DeviceMemory
from tests.e2e.conftest import RunningService, Script, ScriptedLoader, arm, edge, script, sshd, until
from tests.e2e.test_run_through_ssh import ssh

__all__ = ["arm", "edge", "script", "ssh", "sshd"]

# In place of the deployed 5 s, so that windows fill within seconds
SCRAPE_SECONDS = 1


@dataclass
class Prometheus:
    """A Prometheus of its own with the deployed configuration, but for its targets' addresses and its pace."""

    folder: Path
    targets: Mapping[str, str]

    def __post_init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def __enter__(self) -> Self:
        config = self.folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._configuration()))
        self._log = (self.folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            until(self._is_ready, "Prometheus is ready", timeout=30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def values(self, query: str) -> list[float]:
        """Returns the values of all series of an instant query, those that are not a number left out."""
        result = self._ask("query", query=query)["result"]
        values = [float(series["value"][1]) for series in result]
        return [value for value in values if value == value]

    def label_values(self, metric: str, label: str) -> list[str]:
        """Returns what Grafana offers for label_values(metric, label)."""
        return self._ask(f"label/{label}/values", **{"match[]": metric})

    def firing(self) -> set[str]:
        """Returns the names of the alerts that fire."""
        return {a["labels"]["alertname"] for a in self._ask("alerts")["alerts"] if a["state"] == "firing"}

    def _configuration(self) -> dict[str, Any]:
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        every = f"{SCRAPE_SECONDS}s"
        config["global"] = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
        config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
        for job in config["scrape_configs"]:
            job["static_configs"][0]["targets"] = [self.targets[job["job_name"]]]
        return config

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self.folder / "prometheus.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def _ask(self, what: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{what}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]


@pytest.fixture
def prometheus(tmp_path) -> Callable[..., Prometheus]:
    """Returns a function that makes a Prometheus for the addresses of the jobs."""
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus: apt-get install prometheus")
    folder = tmp_path / "prometheus"
    folder.mkdir()
    return lambda **targets: Prometheus(folder, {name.replace("_", "-"): target for name, target in targets.items()})


@pytest.fixture
def announced(tmp_path, monkeypatch) -> Path:
    """Where the service writes its ports."""
    monkeypatch.setenv("LONGARM_SERVICE_ANNOUNCE", str(tmp_path / "ports.json"))
    return tmp_path / "ports.json"


@pytest.fixture
def service(script: Script, announced: Path, monkeypatch) -> Iterator[RunningService]:
    """The end-to-end tests' service, which believes in a GPU: its panels and its alert have data here too."""
    gpu = DeviceMemory("cuda:0", allocated_bytes=10, reserved_bytes=20, total_bytes=80, utilization=0.25)
    monkeypatch.setattr(ScriptedLoader, "device_memory", lambda _: [gpu])
    running = RunningService(script)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def tunnel_settings(ssh: SshSettings, announced: Path) -> SshSettings:
    """A tunnel that leads to the metrics as well."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    far_port = json.loads(announced.read_text())["metrics_port"]
    return ssh.model_copy(update={"metrics_port": far_port, "local_metrics_port": port})
