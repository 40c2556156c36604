"""A far machine on this one: a private sshd, a bare user account, and a Python that has torch and LeRobot already."""

import contextlib
import getpass
import io
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from bench.links import LinkSpec
from bench.proxy import Proxy
from longarm_edge.provision import FarSettings, commands
from longarm_edge.provision.connection import connected
from longarm_edge.provision.executor import Executor, FarService
from longarm_edge.provision.far import SshFar
from longarm_edge.provision.plan import Step
from longarm_edge.tunnel import SshSettings
from longarm_edge.tunnel.local_sshd import LocalSshd, NoSshdError, find_sshd

IS_ROOT = os.getuid() == 0


@dataclass
class Account:
    """Who logs in on the far machine."""

    name: str
    home: Path
    is_made: bool

    def processes(self) -> Iterator[tuple[int, str]]:
        """Yields id and command line of what Longarm runs in this account's home."""
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.home) in command:
                    yield int(directory.name), command


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A directory that another user may look into, unlike pytest's."""
    directory = Path(tempfile.mkdtemp(prefix="longarm-far-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def account(workshop: Path) -> Iterator[Account]:
    """A bare account made for the tests where that can be done, else this one with another home."""
    if IS_ROOT and shutil.which("useradd"):
        name = f"longarm-{secrets.token_hex(3)}"
        home = workshop / "home"
        subprocess.run(
            ["useradd", "--create-home", "--home-dir", home, "--shell", "/bin/sh", "--password", "*", name], check=True
        )
        # Not what /etc/skel gives: the tests look at what is left
        shutil.rmtree(home)
        home.mkdir(0o700)
        shutil.chown(home, name, name)
        found = Account(name, home, is_made=True)
    else:
        found = Account(getpass.getuser(), workshop / "home", is_made=False)
        found.home.mkdir()
    yield found
    for process, _ in list(found.processes()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    if found.is_made:
        subprocess.run(["userdel", "--force", found.name], check=True, capture_output=True)


@pytest.fixture(scope="session")
def far_python(workshop: Path) -> Path:
    """A Python that the account can run and that has this environment's packages, as a rented machine's image has."""
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    for path in packages:
        if not all(parent.stat().st_mode & 0o001 for parent in Path(path).parents):
            pytest.skip(f"another user cannot read {path}")
    tree = workshop / "python"
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    ignored = shutil.ignore_patterns("site-packages", "test", "idlelib", "tkinter")
    shutil.copytree(base / "lib" / version, tree / "lib" / version, copy_function=link, ignore=ignored)
    for library in (base / "lib").glob("libpython*"):
        link(str(library.resolve()), str(tree / "lib" / library.name))
    (tree / "bin").mkdir()
    link(str((base / "bin" / version).resolve()), str(tree / "bin" / version))
    (tree / "lib" / version / "site-packages").mkdir()
    (tree / "lib" / version / "site-packages" / "provided.pth").write_text("\n".join(packages))
    return tree / "bin" / version


@pytest.fixture(scope="session")
def sshd(account: Account, workshop: Path) -> Iterator[LocalSshd]:
    """A private sshd that lets the account in."""
    try:
        find_sshd()
    except NoSshdError as error:
        pytest.skip(str(error))
    keys = workshop / "authorized_keys"
    environment = [f"LD_LIBRARY_PATH={workshop / 'python' / 'lib'}", "HF_HUB_OFFLINE=1"]
    if not account.is_made:
        environment.append(f"HOME={account.home}")
    server = LocalSshd(
        workshop / "sshd",
        user=account.name,
        options=[
            f"AuthorizedKeysFile {keys}",
            "Subsystem sftp internal-sftp",
            "SetEnv " + " ".join(environment),
        ],
    )
    keys.write_text(server.client_key.with_suffix(".pub").read_text())
    keys.chmod(0o644)
    with server:
        yield server


@pytest.fixture
def ssh(sshd: LocalSshd) -> SshSettings:
    """How to get to the far machine, on ports of its own."""
    return sshd.settings(service_port=free_port(), metrics_port=free_port())


@pytest.fixture
def far(ssh: SshSettings) -> Iterator[SshFar]:
    """The far machine over a connection of its own."""
    with connected(ssh, None) as transport:
        yield SshFar(transport)


@dataclass
class Operator:
    """Runs commands as a person would, and remembers which steps were carried out."""

    ssh: SshSettings
    settings: FarSettings
    console: Console
    steps: list[list[Step]] = field(default_factory=list)

    def up(self, **settings: object) -> FarService:
        return commands.up(self.ssh, self._changed(settings), self.console, device="cpu")

    def manage(self, command: str, **options: object) -> int:
        return commands.manage(command, self.ssh, self.settings, self.console, **options)

    def said(self) -> str:
        """Returns what was said since the last time."""
        return self.console.export_text()

    def _changed(self, settings: dict[str, object]) -> FarSettings:
        return FarSettings.model_validate({**self.settings.model_dump(), **settings})


@dataclass
class SlowLink:
    """The far machine behind a link of 8 Mbit/s, which can fall silent."""

    proxy: Proxy
    ssh: SshSettings


@pytest.fixture
def slow_link(sshd: LocalSshd, ssh: SshSettings) -> Iterator[SlowLink]:
    proxy = Proxy(sshd.port, LinkSpec("slow", 0.01, up_mbit=8))
    known_hosts = ssh.known_hosts_file.with_name("known_hosts_slow")
    known_hosts.write_text(sshd.known_hosts.replace(f":{sshd.port} ", f":{proxy.port} "))
    yield SlowLink(proxy, ssh.model_copy(update={"port": proxy.port, "known_hosts_file": known_hosts}))
    proxy.close()


@pytest.fixture
def mount_there(workshop: Path, account: Account) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of the account's own, with tmpfs's options, and returns where."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = workshop / f"disk-{len(places)}"
        place.mkdir()
        owner = f"uid={account.home.stat().st_uid},mode=700"
        command = ["mount", "-t", "tmpfs", "-o", f"{options},{owner}", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(f"there is no mount here: {error}")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


@pytest.fixture
def operator(ssh: SshSettings, far_python: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """Somebody at the laptop."""
    settings = FarSettings(python=str(far_python), reuse_packages=True, manager="own", ready_timeout=60)
    found = Operator(ssh, settings, Console(record=True, file=io.StringIO(), width=200))
    carry_out = Executor.carry_out

    def remember(executor: Executor, steps: list[Step]) -> FarService:
        found.steps.append(steps)
        return carry_out(executor, steps)

    monkeypatch.setattr(Executor, "carry_out", remember)
    return found


def machine_flags(ssh: SshSettings, account: Account, far_python: Path) -> list[str]:
    """Returns the far machine as a person names it on the command line of `longarm-edge`, with this test's settings."""
    return [
        f"{account.name}@127.0.0.1",
        "-p",
        str(ssh.port),
        "-i",
        str(ssh.key_file),
        f"--ssh.known_hosts_file={ssh.known_hosts_file}",
        f"--ssh.service_port={ssh.service_port}",
        f"--ssh.metrics_port={ssh.metrics_port}",
        "--ssh.agent=false",
        f"--far.python={far_python}",
        "--far.reuse_packages",
        "--far.manager=own",
        "--policy_device=cpu",
        "--metrics_port=0",
    ]


def free_port() -> int:
    """Returns a port below those that the kernel gives to connections, which might take it before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def until(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    """Returns when condition holds; fails the test if it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)
