"""What can be wrong on the far side, and what is said then: full disks, accounts without a shell, ports, mounts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import fill_up
from tests.edge.provision.conftest import Account, Operator, machine_flags

from longarm_edge.provision import ProvisionError, scripts
from longarm_edge.provision.facts import look
from longarm_edge.provision.far import SshFar
from longarm_edge.provision.upload import read_directory, send
from longarm_edge.tunnel import SshSettings
from longarm_edge.tunnel.local_sshd import LocalSshd
from longarm_wire.settings import ConfigurationError

MountThere = Callable[[str], Path]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("echo welcome to the cluster", "found «welcome to the cluster»"),
        ("echo 'This account is not available.'; exit 1", "found «This account is not available.»"),
        ("true", "found one that runs none"),
        ("internal-sftp", "Expected a shell for commands"),
    ],
)
def test_an_account_without_a_shell_is_said(
    operator: Operator, sshd: LocalSshd, account: Account, workshop: Path, program: str, words: str
) -> None:
    bound = LocalSshd(
        workshop / "bound-sshd",
        user=account.name,
        options=[sshd.options[0], "Subsystem sftp internal-sftp", f"ForceCommand {program}"],
    )
    with bound:
        operator.ssh.known_hosts_file.write_text(bound.known_hosts)
        operator.ssh = operator.ssh.model_copy(update={"port": bound.port})
        for act in (operator.up, lambda: operator.manage("status"), lambda: operator.manage("down")):
            with pytest.raises(ConfigurationError) as caught:
                act()
            assert words in str(caught.value)
            assert "ForceCommand" in str(caught.value)


def test_a_look_that_fails_is_said(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripts.LOOK.replace('say machine "$(uname -m)"', "echo no uname here; exit 5")
    monkeypatch.setattr("longarm_edge.provision.facts.LOOK", script)
    with pytest.raises(ProvisionError, match=r"failed there:\n(.*\n)*no uname here"):
        operator.manage("status")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Forty files, 20 MB together."""
    directory = tmp_path / "files"
    directory.mkdir()
    for number in range(40):
        (directory / f"{number}.bin").write_bytes(bytes(500_000))
    return directory


@pytest.mark.parametrize("options", ["size=64m,nr_inodes=30", "size=8m", "size=64m,nr_inodes=4"])
def test_a_full_disk_is_named(far: SshFar, mount_there: MountThere, files: Path, options: str) -> None:
    """SFTP itself only says «Failure», for which a broken connection was once blamed. Without directories as well."""
    disk = mount_there(options)
    with pytest.raises(ProvisionError, match=r"No space left on device \(\d+ KiB and \d+ files are left\)") as caught:
        send(far, read_directory(files), f"{disk}/policies/deep/down/act")
    assert type(caught.value) is ProvisionError, "another attempt is of no use"
    assert "--far.directory" in str(caught.value)


def test_a_disk_that_is_full_while_the_environment_is_made(
    operator: Operator, mount_there: MountThere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longarm_edge.provision.plan.NEEDED_TO_RUN", 0)
    monkeypatch.setattr("longarm_edge.provision.plan.NEEDED_FOR_REUSE", 0)
    disk = mount_there("size=5m")
    with pytest.raises(ProvisionError, match=r"virtual environment .* failed (.|\n)*No space left on device") as caught:
        operator.up(directory=f"{disk}/longarm")
    assert "--far.directory" in str(caught.value)


def installed(far: SshFar, directory: Path) -> None:
    """Makes what looks like an installation."""
    far.run(scripts.MAKE_DIRECTORY, {"directory": str(directory)})
    far.run(
        'cd "$directory"; mkdir venv policies/act policies/act/stuck\n'
        "touch venv/.base venv/.packages venv/.longarm policies/act/config.json policies/act/stuck/file",
        {"directory": str(directory)},
    )


def test_a_down_that_broke_off_can_be_done_again(operator: Operator, account: Account, far: SshFar) -> None:
    """What it leaves is still known as Longarm's, by up as well, and nothing of it looks whole."""
    directory = account.home / "off"
    operator.settings = operator.settings.model_copy(update={"directory": str(directory)})
    installed(far, directory)
    far.run('chmod 500 "$stuck"', {"stuck": f"{directory}/policies/act/stuck"})
    with pytest.raises(ProvisionError, match="stuck"):
        operator.manage("down")
    facts = look(far, str(directory))
    assert not facts.is_foreign
    assert (facts.base, facts.packages, facts.longarm, facts.policies) == ("", "", "", frozenset())
    far.run('chmod -R 700 "$directory"', {"directory": str(directory)})
    assert operator.manage("down") == 0
    assert not directory.exists()
    assert operator.manage("down") == 0
    assert f"there is nothing of Longarm in {directory}" in operator.said()


def test_a_mount_point_stays_and_is_said_to(
    operator: Operator, mount_there: MountThere, far: SshFar, caplog: pytest.LogCaptureFixture
) -> None:
    disk = mount_there("size=8m")
    operator.settings = operator.settings.model_copy(update={"directory": str(disk)})
    installed(far, disk)
    assert operator.manage("down") == 0
    assert list(disk.iterdir()) == []
    assert f"Everything in {disk} is removed, the directory itself stays (rmdir: " in caplog.text


def test_an_empty_directory_of_somebody_else_stays(operator: Operator, account: Account, far: SshFar) -> None:
    directory = account.home / "empty"
    operator.settings = operator.settings.model_copy(update={"directory": str(directory)})
    far.run("mkdir ~/empty")
    assert operator.manage("down") == 0
    far.run("rmdir ~/empty")


def test_a_log_may_be_cut_off(
    ssh: SshSettings, account: Account, far: SshFar, far_python: Path, tmp_path: Path
) -> None:
    """`logs | head`: who reads has seen enough, and nothing broke."""
    far.run("mkdir -p ~/.longarm/logs; seq 100000 >~/.longarm/logs/service.log")
    command = [sys.executable, "-m", "longarm_edge", "logs", *machine_flags(ssh, account, far_python)]
    with subprocess.Popen(
        [*command, "-n", "100000"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 0
    far.run("rm -r ~/.longarm")


def test_a_server_with_too_few_sessions_is_said(
    operator: Operator, sshd: LocalSshd, account: Account, far: SshFar, workshop: Path
) -> None:
    options = [*sshd.options, "MaxSessions 1"]
    with LocalSshd(workshop / "narrow-sshd", user=account.name, options=options) as narrow:
        operator.ssh.known_hosts_file.write_text(narrow.known_hosts)
        operator.ssh = operator.ssh.model_copy(update={"port": narrow.port})
        with pytest.raises(ProvisionError, match="MaxSessions"):
            operator.up(directory="~/narrow")
    far.run("rm -rf ~/narrow")


def test_a_full_disk_can_be_taken_down(operator: Operator, mount_there: MountThere, far: SshFar) -> None:
    disk = mount_there("size=8m")
    operator.settings = operator.settings.model_copy(update={"directory": f"{disk}/longarm"})
    installed(far, disk / "longarm")
    fill_up(disk)
    assert operator.manage("down") == 0
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_home_directory_with_longarm_in_it_is_not_longarms(operator: Operator, account: Account, far: SshFar) -> None:
    """`down` with the home directory where ~/.longarm is: what marks a directory as Longarm's has the same name."""
    operator.settings = operator.settings.model_copy(update={"directory": str(account.home)})
    far.run(scripts.MAKE_DIRECTORY, {"directory": f"{account.home}/.longarm"})
    for act in (operator.up, lambda: operator.manage("down")):
        with pytest.raises(ConfigurationError, match=f"{account.home} "):
            act()
    # Where nothing else would have stopped it
    far.run(scripts.REMOVE, {"directory": str(account.home), "unit_name": "none"})
    assert (account.home / ".longarm" / "run").is_dir()
    far.run("rm -r ~/.longarm")
