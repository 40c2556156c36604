"""The whole way: a bare account, our real wheels, the real service with a real policy, and what a person does to it.

The tests share one installation and go through its life in order, for each start of the service imports torch.
"""

import contextlib
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr
from tests.edge.provision.conftest import Account, Operator, until

from longarm_edge.provision import FarService, ProvisionError
from longarm_edge.provision.executor import Executor
from longarm_edge.provision.facts import Facts, look
from longarm_edge.provision.far import SshFar
from longarm_edge.provision.plan import (
    AwaitReady,
    InstallLongarm,
    InstallPackages,
    MakeDirectory,
    MakeEnvironment,
    SendPolicy,
    StartService,
)
from longarm_edge.tunnel.local_sshd import LocalSshd
from longarm_wire.settings import ConfigurationError

SECRET = "hf_MARKERmarker0123456789"

pytestmark = pytest.mark.timeout(180)


@dataclass
class Watch:
    """Looks at every command line on the machine, again and again."""

    seen: list[str] = field(default_factory=list)
    looks: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.05):
            self.looks += 1
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    if SECRET.encode() in (command := file.read_bytes()):
                        self.seen.append(command.decode())


@dataclass
class Life:
    """What is there after the first `up`."""

    policy: Path
    ports: tuple[int, int]
    service: FarService
    first_steps: list[list[object]]
    watch: Watch
    said: str


@pytest.fixture(scope="module")
def life() -> dict[str, Life]:
    return {}


@pytest.fixture
def person(operator: Operator, life: dict[str, Life]) -> Operator:
    """The operator, always with the same settings."""
    secrets = {"HF_TOKEN": SecretStr(SECRET)}
    operator.settings = operator.settings.model_copy(update={"secrets": secrets})
    if "it" in life:
        ports = dict(zip(("service_port", "metrics_port"), life["it"].ports, strict=True))
        operator.ssh = operator.ssh.model_copy(update=ports)
    return operator


@pytest.fixture
def it(life: dict[str, Life]) -> Life:
    if "it" not in life:
        pytest.skip("the first up did not work")
    return life["it"]


def seen(far: SshFar) -> Facts:
    return look(far, "~/.longarm")


def health(port: int) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True
        )
        return answer.status


def test_nothing_is_there_to_look_after(operator: Operator, far_python: Path) -> None:
    assert operator.manage("status") == 1
    assert "not installed" in operator.said()
    assert operator.manage("stop") == 0
    with pytest.raises(ProvisionError, match="longarm-edge up"):
        operator.manage("restart")
    with pytest.raises(ProvisionError, match="no log yet"):
        operator.manage("logs")


def test_a_machine_without_a_usable_python_is_left_alone(operator: Operator, account: Account) -> None:
    with pytest.raises(ConfigurationError, match="/no/python is no complete Python"):
        operator.up(python="/no/python")
    assert list(account.home.iterdir()) == []


def test_up_on_a_bare_account(
    person: Operator,
    sshd: LocalSshd,
    account: Account,
    life: dict[str, Life],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The connection breaks in the middle of sending the policy: `up` goes on by itself."""
    from tests.service.checkpoints import save_act

    policy = save_act(tmp_path_factory.mktemp("policies") / "act")
    dropped: list[int] = []

    def drop_once(_: object, sent: int, total: int) -> None:
        if sent > total / 2 and not dropped:
            dropped.append(sent)
            sshd.drop_connections()

    monkeypatch.setattr("longarm_edge.provision.narrator.Telling.progress", drop_once)
    monkeypatch.setattr("longarm_edge.provision.commands.RECONNECT_SECONDS", 0.1)
    watch = Watch()
    caplog.set_level("DEBUG")
    with watch.watching():
        service = person.up(policy=policy)
    ports = (person.ssh.service_port, person.ssh.metrics_port)
    life["it"] = Life(policy, ports, service, list(person.steps), watch, person.said() + caplog.text)

    assert dropped
    first, *_, last = person.steps
    name = Path(service.policy).name
    assert [type(step) for step in first] == [
        MakeDirectory,
        SendPolicy,
        MakeEnvironment,
        InstallPackages,
        InstallLongarm,
        StartService,
        AwaitReady,
    ]
    assert SendPolicy(name) in last
    assert MakeDirectory() not in last
    assert (service.port, service.metrics_port) == ports
    assert service.policy == f"{account.home}/.longarm/policies/{name}"
    assert health(service.port) == health_pb2.HealthCheckResponse.SERVING


def test_the_service_listens_on_the_loopback_only(it: Life) -> None:
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) in it.ports
    ]
    # 127.0.0.1 as the kernel writes it, alone or mapped into IPv6
    assert len(listening) == 2
    assert all(address.partition(":")[0].endswith("0100007F") for address in listening)


def test_the_secret_is_in_memory_only(it: Life, account: Account, far: SshFar) -> None:
    assert it.watch.looks > 50
    assert it.watch.seen == []
    assert SECRET not in it.said
    holders = [pid for pid, _ in account.processes() if SECRET in Path(f"/proc/{pid}/environ").read_text()]
    assert len(holders) == 4, "supervisor, service, what policies are forked from, and the policy's process have it"
    files = [path for path in account.home.rglob("*") if path.is_file() and "venv/lib" not in str(path)]
    assert account.home / ".longarm" / "run" / "service.json" in files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    # Where the virtual environment is, links lead out of it
    assert far.run('grep -rlF "$marker" "$HOME" || :', {"marker": SECRET}) == []


def test_up_again_attaches(person: Operator, it: Life, far: SshFar) -> None:
    before = seen(far).running.service_pid
    assert person.up(policy=it.policy) == it.service
    assert person.steps == [[AwaitReady()]]
    assert seen(far).running.service_pid == before


def test_status_and_logs_say_how_it_is(person: Operator, it: Life, capsys: pytest.CaptureFixture[str]) -> None:
    assert person.manage("status") == 0
    said = person.said()
    assert "ready, Longarm" in said
    assert str(it.ports[0]) in said
    assert Path(it.service.policy).name in said
    assert person.manage("logs") == 0
    assert "ready: listening on 127.0.0.1" in capsys.readouterr().out


def test_logs_can_be_followed(person: Operator, it: Life, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until somebody presses Ctrl-C, after which nothing is left over there."""

    def interrupt(line: str, *, flush: bool) -> None:
        if "still to come" in line:
            raise KeyboardInterrupt

    log = account.home / ".longarm" / "logs" / "service.log"
    monkeypatch.setattr("builtins.print", interrupt)

    def write() -> None:
        until(lambda: any("tail" in command for _, command in account.processes()), "tail over there")
        with log.open("a") as sink:
            sink.write("still to come\n")

    thread = threading.Thread(target=write)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        person.manage("logs", follow=True)
    thread.join()
    until(lambda: not any("tail" in command for _, command in account.processes()), "the end of tail")


def test_a_crash_is_mended(it: Life, far: SshFar, sshd: LocalSshd) -> None:
    """With nobody logged in."""
    before = seen(far).running
    sshd.drop_connections()
    os.kill(before.service_pid, signal.SIGKILL)
    # The port comes back with the new service, and so does the policy
    time.sleep(0.3)
    until(lambda: ready(it.ports[1]), "ready again", 60)
    assert health(it.ports[0]) == health_pb2.HealthCheckResponse.SERVING


def ready(metrics_port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/readyz", timeout=5):
        return True
    return False


def test_status_tells_of_the_crash(person: Operator, it: Life) -> None:
    assert person.manage("status") == 0
    assert "restarts: 1, last end: SIGKILL" in person.said()


def test_restart(person: Operator, it: Life, far: SshFar) -> None:
    before = seen(far).running.service_pid
    assert person.manage("restart") == 0
    running = seen(far).running
    assert running.service_pid != before
    assert running.readiness == "ready"


def test_stop(person: Operator, it: Life, account: Account) -> None:
    assert person.manage("stop") == 0
    assert list(account.processes()) == []
    assert person.manage("status") == 1
    assert "not running" in person.said()
    log = (account.home / ".longarm" / "logs" / "service.log").read_text()
    assert log.endswith("stopped\nsupervisor: stopped\n"), "in good order"


def test_an_older_one_is_upgraded(person: Operator, it: Life, account: Account) -> None:
    """The packages stay. The port that somebody else has by now is left alone. Of two at once one does it."""
    (account.home / ".longarm" / "venv" / ".longarm").write_text("0.0.9 0123\n")
    with socket.create_server(("127.0.0.1", it.ports[0])), ThreadPoolExecutor(2) as pool:
        service, same = pool.map(lambda _: person.up(policy=it.policy), range(2))
    first, second = person.steps
    assert [type(step) for step in first] == [InstallLongarm, StartService, AwaitReady]
    assert [type(step) for step in second] == [AwaitReady]
    assert service == same
    assert service.port != it.ports[0]
    assert health(service.port) == health_pb2.HealthCheckResponse.SERVING


def test_a_port_that_is_taken_meanwhile_is_no_dead_end(
    person: Operator, it: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The service then names settings of its own, and once that was the end: exit code 3, on the laptop."""
    assert person.manage("stop") == 0
    start = Executor._start
    with contextlib.ExitStack() as thieves:

        def be_too_late(executor: Executor, step: StartService) -> None:
            if len(person.steps) == 1:
                thieves.enter_context(socket.create_server(("127.0.0.1", step.port)))
            start(executor, step)

        monkeypatch.setattr(Executor, "_start", be_too_late)
        service = person.up(policy=it.policy)
    assert [type(step) for step in person.steps[1]] == [StartService, AwaitReady]
    assert "another program took it since the look" in caplog.text
    assert "LONGARM_SERVICE" not in caplog.text
    assert health(service.port) == health_pb2.HealthCheckResponse.SERVING


def test_a_policy_that_does_not_load_is_final(person: Operator, it: Life, tmp_path: Path, account: Account) -> None:
    """The service says it can never start: no endless restarts, and the reason is on the laptop's terminal."""
    assert person.manage("stop") == 0
    (tmp_path / "config.json").write_text('{"type": "act"}')
    with pytest.raises(ConfigurationError, match="can never start as configured: POLICY_LOAD_FAILED"):
        person.up(policy=tmp_path)
    assert person.manage("status") == 1
    assert "can never start" in person.said()


def owner(path: Path) -> str:
    with contextlib.suppress(OSError, KeyError):
        return path.owner()
    return ""


def test_down_leaves_nothing(person: Operator, it: Life, account: Account) -> None:
    assert person.manage("down") == 0
    assert list(account.processes()) == []
    assert list(account.home.iterdir()) == []
    # LeRobot leaves a file there for each policy that it loads
    assert [path for path in Path("/tmp").iterdir() if account.is_made and owner(path) == account.name] == []
    assert person.manage("down") == 0
