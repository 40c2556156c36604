"""The install scripts on a fresh machine with systemd: what they put where, keep, and take away."""

import sys
from collections.abc import Iterator

import pytest

from tests.systemd.conftest import ROOT, Machine, booted, docker

pytestmark = pytest.mark.timeout(180)

INSTALL, UNINSTALL = "deploy/systemd/install", "deploy/systemd/uninstall"
WITH_VENV = ("--venv", sys.prefix)
# What a machine changes by itself, and what useradd's like leaves as backups
ELSEWHERE = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/log", "/var/lib/systemd", "/etc/passwd", "/etc/group")
UNIT = "/etc/systemd/system/longarm-edge.service"
EDITED = "LONGARM_EDGE_TASK=edited"


@pytest.fixture
def machine(image: str) -> Iterator[Machine]:
    with booted(image) as machine:
        yield machine


def tree(machine: Machine) -> set[str]:
    """Returns every file with its owner, mode and target."""
    skipped = " -o ".join(f"-path '{path}*'" for path in (*ELSEWHERE, "/etc/shadow", "/etc/gshadow", ROOT, sys.prefix))
    return set(machine.shell(f"find / \\( {skipped} \\) -prune -o -printf '%p %u:%g %m %l\\n'").splitlines())


def test_everything_has_its_place_owner_and_mode(machine) -> None:
    before = tree(machine)
    machine.run(INSTALL, "edge", *WITH_VENV, "--sysctl")
    assert tree(machine) - before == {
        "/etc/longarm root:root 755 ",
        "/etc/longarm/edge.env root:root 600 ",
        "/etc/longarm/edge.env.example root:root 644 ",
        "/etc/sysctl.d/90-longarm.conf root:root 644 ",
        f"{UNIT} root:root 644 ",
        f"/etc/systemd/system/multi-user.target.wants/longarm-edge.service root:root 777 {UNIT}",
        "/etc/sysusers.d root:root 755 ",
        "/etc/sysusers.d/longarm.conf root:root 644 ",
        "/opt/longarm root:root 755 ",
        "/opt/longarm/doc root:root 755 ",
        "/opt/longarm/doc/deploy-systemd.md root:root 644 ",
        f"/opt/longarm/edge root:root 777 {sys.prefix}",
        "/var/lib/longarm longarm:longarm 750 ",
        "/var/lib/longarm/.ssh longarm:longarm 700 ",
        "/var/lib/longarm/calibration longarm:longarm 750 ",
    }
    assert machine.shell("id -un longarm; id -Gn longarm").split() == ["longarm", "longarm", "dialout", "video"]
    assert machine.run("systemctl", "is-enabled", "longarm-edge").stdout.strip() == "enabled"
    assert machine.show("longarm-edge", "ActiveState") == "inactive", "nothing moves by itself"


def test_a_second_install_changes_nothing(machine) -> None:
    for role in ("edge", "service"):
        machine.run(INSTALL, role, *WITH_VENV)
    machine.run(INSTALL, "edge-docker")
    before = tree(machine)
    for role in ("edge", "service"):
        machine.run(INSTALL, role, *WITH_VENV)
    machine.run(INSTALL, "edge-docker")
    assert tree(machine) == before


def test_edited_settings_survive_a_reinstall_and_an_uninstall(machine) -> None:
    machine.run(INSTALL, "edge", *WITH_VENV)
    machine.shell(f"echo {EDITED} >>/etc/longarm/edge.env; echo old >/etc/longarm/edge.env.example")
    again = machine.run(INSTALL, "edge", *WITH_VENV)
    assert "kept /etc/longarm/edge.env" in again.stdout
    assert machine.shell("tail -n 1 /etc/longarm/edge.env") == EDITED
    machine.shell(f"cmp /etc/longarm/edge.env.example {ROOT}/deploy/systemd/edge.env.example")
    gone = machine.run(UNINSTALL, "edge")
    assert "kept /etc/longarm/edge.env" in gone.stdout
    assert machine.shell("tail -n 1 /etc/longarm/edge.env") == EDITED
    machine.run(INSTALL, "edge", *WITH_VENV)
    assert machine.shell("tail -n 1 /etc/longarm/edge.env") == EDITED


@pytest.mark.parametrize("role", ["edge", "edge-docker", "service"])
def test_an_uninstall_removes_what_was_installed(machine, role: str) -> None:
    before = tree(machine)
    machine.run(INSTALL, role, *(() if role == "edge-docker" else WITH_VENV), "--sysctl")
    unit = f"longarm-{role}"
    # What a person and a run add
    machine.shell(f"mkdir -p /etc/systemd/system/{unit}.service.d /var/lib/longarm/calibration")
    machine.shell(f"printf '[Service]\\nNice=1\\n' >/etc/systemd/system/{unit}.service.d/override.conf")
    machine.shell(f"for env in /etc/longarm/*.env; do echo {EDITED} >>$env; done")
    machine.run(UNINSTALL, role, "--purge")
    after = tree(machine)
    assert after - before <= {"/etc/sysusers.d root:root 755 "}
    assert before - after == set()
    assert machine.run("id", "longarm", check=False).returncode != 0
    assert machine.show(unit, "LoadState") == "not-found"


def test_untouched_settings_go_without_a_purge(machine) -> None:
    machine.run(INSTALL, "service", *WITH_VENV)
    machine.run(UNINSTALL, "service")
    assert machine.run("ls", "/etc/longarm", check=False).returncode != 0
    # As the first one advises, where something was kept
    machine.run(UNINSTALL, "service", "--purge")
    assert machine.run("id", "longarm", check=False).returncode != 0


def test_two_units_for_one_robot_are_pointed_out(machine) -> None:
    machine.run(INSTALL, "edge", *WITH_VENV)
    assert "systemctl disable longarm-edge\n" in machine.run(INSTALL, "edge-docker").stdout


def test_an_uninstall_leaves_the_others_alone(machine) -> None:
    machine.run(INSTALL, "edge-docker")
    between = tree(machine)
    machine.run(INSTALL, "edge", *WITH_VENV)
    machine.run(UNINSTALL, "edge", "--purge")
    after = tree(machine)
    assert between <= after
    added = {line.split()[0] for line in after - between}
    assert not [path for path in added if not path.startswith(("/etc/sysusers.d", "/var/lib/longarm"))]
    assert machine.run("systemctl", "is-enabled", "longarm-edge-docker").stdout.strip() == "enabled"


@pytest.mark.parametrize("script", [INSTALL, UNINSTALL])
@pytest.mark.parametrize("arguments", [(), ("robot",), ("edge", "--force"), ("edge", "--venv")])
def test_bad_usage_shows_how_it_is_meant(image: str, script: str, arguments: tuple[str, ...]) -> None:
    """In a container without systemd: nothing could be installed by mistake."""
    command = ("run", "--rm", "--volume", f"{ROOT}:{ROOT}:ro", "--workdir", str(ROOT), image, script, *arguments)
    done = docker(*command, check=False)
    assert done.returncode == 2
    assert "edge|edge-docker|service" in done.stderr


@pytest.mark.parametrize(("flags", "expected"), [(("--user", "nobody"), "as root"), ((), "expected systemd")])
def test_what_cannot_be_installed_is_refused(image: str, flags: tuple[str, ...], expected: str) -> None:
    volume = ("--volume", f"{ROOT}:{ROOT}:ro", "--workdir", str(ROOT))
    done = docker("run", "--rm", *volume, *flags, image, INSTALL, "edge", check=False)
    assert done.returncode == 1
    assert expected in done.stderr


def test_a_missing_environment_is_named(machine) -> None:
    done = machine.run(INSTALL, "edge", "--venv", "/usr", check=False)
    assert done.returncode == 1
    assert "expected /usr/bin/longarm-edge" in done.stderr
