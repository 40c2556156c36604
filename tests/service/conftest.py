"""Services and checkpoints for the tests. What they are made of is in fakes.py and checkpoints.py."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports the hub's library, which reads it once
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.service.fake_hub import Hub, go_online, running_hub
from tests.service.fakes import FakeLoader, RunningService

from longarm_service.policy import PolicyLoader
from longarm_service.settings import ServiceSettings

Serve = Callable[..., RunningService]


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def serve(loader: FakeLoader) -> Iterator[Serve]:
    """Starts services with the given settings; they end with the test."""
    running: list[RunningService] = []

    def start(
        make_loader: Callable[[], PolicyLoader] = lambda: loader, *, clock: Any = None, **settings: Any
    ) -> RunningService:
        defaults = {"port": 0, "metrics_port": 0, "drain_timeout": 5.0}
        options = {} if clock is None else {"clock": clock}
        running.append(RunningService(ServiceSettings(**defaults | settings), make_loader, **options))
        return running[-1]

    yield start
    loader.gate.set()
    for policy in loader.policies.values():
        policy.gate.set()
    for service in running:
        service.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A model hub on this machine, which processes of this test ask, with a cache of their own."""
    with running_hub() as hub:
        go_online(monkeypatch, tmp_path / "cache", hub.address)
        yield hub


@pytest.fixture(scope="session")
def act_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ACT with random weights, saved as LeRobot saves."""
    from tests.service.checkpoints import save_act

    return save_act(tmp_path_factory.mktemp("act"))
