"""One at a time in one directory: over real connections to a real sshd."""

import getpass
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.edge.provision.conftest import Account, until

from longarm_edge.provision import ProvisionError
from longarm_edge.provision.connection import connected
from longarm_edge.provision.errors import ConnectionLostError
from longarm_edge.provision.far import SshFar
from longarm_edge.provision.scripts import REMOVE
from longarm_edge.provision.unit import UNIT_NAME
from longarm_edge.tunnel import SshSettings
from longarm_edge.tunnel.local_sshd import LocalSshd


@pytest.fixture
def directory(account: Account) -> Iterator[Path]:
    place = account.home / "held"
    yield place
    until(lambda: not list(account.processes()), "the end of those who held it")
    for path in place.glob(".*"):
        path.unlink()
    with suppress(FileNotFoundError):
        place.rmdir()


class Other:
    """Somebody else who wants the directory, on a connection and a thread of his own, and is told to wait."""

    def __init__(self, ssh: SshSettings, directory: Path) -> None:
        self.told: list[str] = []
        self.has_it = threading.Event()
        self._may_go = threading.Event()
        self._ssh, self._directory = ssh, directory
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()
        until(lambda: bool(self.told), "somebody else waits")

    def _hold(self) -> None:
        with connected(self._ssh, None) as transport, SshFar(transport).hold(str(self._directory), self.told.append):
            self.has_it.set()
            self._may_go.wait()

    def leave(self) -> None:
        assert self.has_it.wait(20)
        self._may_go.set()
        self._thread.join()


def test_the_second_waits_and_is_told_for_whom(far: SshFar, ssh: SshSettings, directory: Path) -> None:
    with far.hold(str(directory), print):
        other = Other(ssh, directory)
        assert other.told[0].startswith(f"Another longarm-edge is at work in {directory}: {getpass.getuser()}@")
        assert ", since 20" in other.told[0]
        assert not other.has_it.is_set()
    other.leave()


def test_whoever_loses_the_connection_lets_go(ssh: SshSettings, sshd: LocalSshd, directory: Path) -> None:
    with suppress(ProvisionError), connected(ssh, None) as transport, SshFar(transport).hold(str(directory), print):
        sshd.drop_connections()
        with connected(ssh, None) as another, SshFar(another).hold(str(directory), print):
            pass


def test_whoever_falls_silent_is_not_waited_for(
    ssh: SshSettings, far: SshFar, account: Account, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The far machine may take hours to notice that a laptop is gone. What that had begun ends with its connection."""
    monkeypatch.setattr("longarm_edge.provision.far.LEASE_SECONDS", 2)
    monkeypatch.setattr("longarm_edge.provision.far.BEAT_SECONDS", 3600)

    def is_at_work() -> bool:
        return any("sleep 600" in command for _, command in account.processes())

    def work() -> None:
        with pytest.raises(ConnectionLostError):
            far.run('sh -c "sleep 600; : $HOME"')

    with far.hold(str(directory), print):
        thread = threading.Thread(target=work)
        thread.start()
        until(is_at_work, "work")
        other = Other(ssh, directory)
        other.leave()
        thread.join()
        until(lambda: not is_at_work(), "the end of what was begun")
    assert "no sign of life for 2 s" in other.told[1]


def test_whoever_shows_life_is_waited_for(
    ssh: SshSettings, far: SshFar, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longarm_edge.provision.far.LEASE_SECONDS", 2)
    monkeypatch.setattr("longarm_edge.provision.far.BEAT_SECONDS", 0.3)
    with far.hold(str(directory), print):
        other = Other(ssh, directory)
        assert not other.has_it.wait(4)
        assert len(other.told) == 1
    other.leave()


def test_a_directory_that_is_removed_meanwhile_is_made_anew(ssh: SshSettings, far: SshFar, directory: Path) -> None:
    with far.hold(str(directory), print):
        other = Other(ssh, directory)
        far.run(REMOVE, {"directory": str(directory), "unit_name": UNIT_NAME})
        assert not directory.exists()
    assert other.has_it.wait(10)
    assert [path.name for path in directory.iterdir()] == [".longarm"]
    other.leave()


def test_a_directory_that_cannot_be_made_is_said(far: SshFar) -> None:
    with pytest.raises(ProvisionError, match="/proc/nothing cannot be written"), far.hold("/proc/nothing", print):
        pass
