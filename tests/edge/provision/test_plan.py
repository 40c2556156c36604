"""The plan: from facts to steps, without any far side."""

import dataclasses
import json
from typing import Any

import pytest

from longarm_edge.provision.facts import Facts, Gpu, Python, Running, parse
from longarm_edge.provision.plan import (
    GIB,
    AwaitReady,
    InstallLongarm,
    InstallPackages,
    MakeDirectory,
    MakeEnvironment,
    SendPolicy,
    StartService,
    Step,
    StopService,
    Wanted,
    plan,
)
from longarm_wire.settings import ConfigurationError

WANTED = Wanted(version="0.2.0", longarm="aaaa", packages="bbbb", revision="cccc", cuda=13)
GPU = Gpu("NVIDIA RTX 4090", 24564, "580.95.05")
PYTHON = Python("/usr/bin/python3.12", (3, 12, 3))
BARE = Facts("/home/a/.longarm", free_bytes=100 * GIB, gpus=(GPU,), pythons=(PYTHON,))
RUNNING = Running(
    state="running",
    supervisor_alive=True,
    service_alive=True,
    service_pid=42,
    version="0.2.0",
    revision="cccc",
    port=8080,
    metrics_port=9100,
    readiness="ready",
)
INSTALLED = dataclasses.replace(
    BARE,
    is_ours=True,
    environment_works=True,
    base=WANTED.base,
    packages="bbbb",
    longarm="0.2.0 aaaa",
    policies=frozenset({"act-1"}),
    taken_ports=frozenset({22, 8080, 9100}),
    running=RUNNING,
)
INSTALL: list[Step] = [MakeEnvironment(PYTHON.path), InstallPackages(), InstallLongarm("0.2.0")]
START = StartService(8080, 9100, "own")


def changed(facts: Facts, **changes: Any) -> Facts:
    return dataclasses.replace(facts, **changes)


def wanted(**changes: Any) -> Wanted:
    return dataclasses.replace(WANTED, **changes)


STOPPED = changed(INSTALLED, running=Running(state="stopped", revision="cccc"), taken_ports=frozenset({22}))

PLANS = [
    pytest.param(BARE, WANTED, [MakeDirectory(), *INSTALL, START, AwaitReady()], id="bare"),
    pytest.param(
        BARE,
        wanted(policy="act-1"),
        [MakeDirectory(), SendPolicy("act-1"), *INSTALL, START, AwaitReady()],
        id="bare, with a policy",
    ),
    pytest.param(INSTALLED, wanted(policy="act-1"), [AwaitReady()], id="everything is there"),
    pytest.param(
        INSTALLED, wanted(policy="act-2"), [SendPolicy("act-2"), AwaitReady()], id="another policy, what runs goes on"
    ),
    pytest.param(STOPPED, WANTED, [START, AwaitReady()], id="stopped"),
    pytest.param(
        changed(INSTALLED, longarm="0.1.0 9999"),
        WANTED,
        [StopService(), InstallLongarm("0.2.0"), START, AwaitReady()],
        id="an older one runs",
    ),
    pytest.param(
        changed(INSTALLED, longarm=""),
        WANTED,
        [StopService(), InstallLongarm("0.2.0"), START, AwaitReady()],
        id="ours broke off",
    ),
    pytest.param(
        changed(STOPPED, packages="", longarm=""), WANTED, [*INSTALL, START, AwaitReady()], id="packages broke off"
    ),
    pytest.param(
        changed(STOPPED, environment_works=False),
        WANTED,
        [*INSTALL, START, AwaitReady()],
        id="the machine was made anew",
    ),
    pytest.param(
        changed(STOPPED, packages="other"),
        WANTED,
        [InstallPackages(), InstallLongarm("0.2.0"), START, AwaitReady()],
        id="other requirements",
    ),
    pytest.param(STOPPED, wanted(reuse=True), [*INSTALL, START, AwaitReady()], id="other base"),
    pytest.param(INSTALLED, wanted(revision="dddd"), [StopService(), START, AwaitReady()], id="other settings"),
    pytest.param(
        changed(INSTALLED, running=dataclasses.replace(RUNNING, supervisor_alive=False)),
        WANTED,
        [StopService(), START, AwaitReady()],
        id="a service without a supervisor",
    ),
    pytest.param(
        changed(INSTALLED, running=dataclasses.replace(RUNNING, service_alive=False, port=0, metrics_port=0)),
        WANTED,
        [AwaitReady()],
        id="between two lives",
    ),
]


@pytest.mark.parametrize(("facts", "wish", "steps"), PLANS)
def test_plan(facts: Facts, wish: Wanted, steps: list[Step]) -> None:
    assert plan(facts, wish) == steps


@pytest.mark.parametrize(
    ("facts", "wish", "ports"),
    [
        (changed(BARE, taken_ports=frozenset({8080})), WANTED, (8081, 9100)),
        (changed(BARE, taken_ports=frozenset({9100, 9101})), WANTED, (8080, 9102)),
        (BARE, wanted(ports=(9100, 9100)), (9100, 9101)),
        (changed(BARE, taken_ports=frozenset({65535})), wanted(ports=(65535, 9100)), (1024, 9100)),
        # A service that makes room for its successor leaves it its ports, so that tunnels stay right
        (changed(INSTALLED, running=dataclasses.replace(RUNNING, port=8090), longarm=""), WANTED, (8090, 9100)),
    ],
)
def test_ports_that_others_have_are_left_alone(facts: Facts, wish: Wanted, ports: tuple[int, int]) -> None:
    (start,) = [step for step in plan(facts, wish) if isinstance(step, StartService)]
    assert (start.port, start.metrics_port) == ports


@pytest.mark.parametrize(
    ("systemd", "manager", "chosen"),
    [("no", "auto", "own"), ("user", "auto", "user"), ("system", "systemd", "system"), ("system", "own", "own")],
)
def test_systemd_is_used_where_it_can_be(systemd: str, manager: Any, chosen: str) -> None:
    (start,) = [s for s in plan(changed(BARE, systemd=systemd), wanted(manager=manager)) if isinstance(s, StartService)]
    assert start.manager == chosen


OLD_PYTHON = Python("/usr/bin/python3", (3, 10, 12))
CUT_PYTHON = Python("/usr/bin/python3.12", (3, 12, 3), complete=False)
PROBLEMS = [
    (changed(BARE, system="Darwin"), WANTED, ["Expected Linux", "found Darwin"]),
    (changed(BARE, machine="riscv64"), WANTED, ["x86_64 or aarch64", "found riscv64"]),
    (changed(BARE, pythons=()), WANTED, ["Expected Python 3.12", "found none", "--far.python"]),
    (changed(BARE, pythons=(OLD_PYTHON,)), WANTED, ["found /usr/bin/python3 (3.10.12)", "conda create"]),
    (changed(BARE, pythons=(CUT_PYTHON,)), WANTED, ["without venv or ensurepip", "apt install python3.12-venv"]),
    (BARE, wanted(python="/opt/other"), ["--far.python=/opt/other is no complete Python"]),
    (changed(BARE, free_bytes=3 * GIB), WANTED, ["has 3.0 GiB left and 9.5 GiB are needed", "--far.directory"]),
    (changed(INSTALLED, free_bytes=GIB), wanted(policy="x", policy_bytes=2 * GIB), ["1.0 GiB left and 2.5 GiB"]),
    (changed(BARE, is_foreign=True), WANTED, ["holds other files", "--far.directory"]),
    (changed(BARE, writable=False), WANTED, ["cannot be written"]),
    (changed(BARE, gpus=()), WANTED, ["Expected a GPU", "--policy_device=cpu"]),
    (changed(BARE, gpus=(), gpu_trouble="No devices"), WANTED, ["(nvidia-smi: No devices)"]),
    (changed(BARE, gpus=(Gpu("T4", 1, "535.1"),)), WANTED, ["driver 580 or newer", "CUDA 13", "found 535.1"]),
    (changed(INSTALLED, longarm="0.10.0 1"), WANTED, ["has Longarm 0.10.0, newer than this one (0.2.0)"]),
    (BARE, wanted(manager="systemd"), ["There is no systemd", "--far.manager=own"]),
]


@pytest.mark.parametrize(("facts", "wish", "words"), PROBLEMS)
def test_what_stands_in_the_way_is_said(facts: Facts, wish: Wanted, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan(facts, wish)
    (problem,) = caught.value.problems
    assert all(word in problem for word in words), problem


def test_all_problems_are_said_at_once() -> None:
    """A rented machine costs money: nobody should learn of the second problem after mending the first."""
    with pytest.raises(ConfigurationError) as caught:
        plan(changed(BARE, pythons=(), gpus=(), free_bytes=0), WANTED)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "wish",
    [
        wanted(device="cpu"),
        wanted(device="cuda"),
    ],
)
def test_who_names_a_device_needs_no_nvidia_smi(wish: Wanted) -> None:
    assert plan(changed(BARE, gpus=()), wish)


@pytest.mark.parametrize("wish", [wanted(reuse=True), wanted(cuda=0), wanted(cuda=12)])
def test_an_old_driver_is_enough_for_an_old_cuda(wish: Wanted) -> None:
    assert plan(changed(BARE, gpus=(Gpu("T4", 15360, "535.104"),)), wish)


def test_an_old_driver_does_not_disturb_what_runs() -> None:
    assert plan(changed(INSTALLED, gpus=(Gpu("T4", 15360, "535.104"),)), WANTED) == [AwaitReady()]


@pytest.mark.parametrize("name", ["/opt/b/python3.13", "python3.13"])
def test_the_interpreter_asked_for_is_taken(name: str) -> None:
    other = Python("/opt/b/python3.13", (3, 13, 0))
    steps = plan(changed(BARE, pythons=(PYTHON, other)), wanted(python=name))
    assert MakeEnvironment(other.path) in steps


# Path, prefix, complete, torch; all of them links to one program
INTERPRETERS = [
    ("/usr/bin/python3", "/usr", False, ""),
    ("/bin/python3", "/usr", False, ""),
    ("/v/bin/python", "/v", True, "2.8.0"),
]


def python_line(interpreter: tuple[str, str, bool, str]) -> str:
    fields = dict(zip(("path", "prefix", "complete", "torch"), interpreter, strict=True))
    return "python=" + json.dumps({**fields, "real": "/usr/bin/python3.12", "version": [3, 12, 3]})


LINES = """\
Welcome to the machine! It is 20% full.
directory=/home/a/.longarm
content=ours
writable=yes
free_kib=1048576
system=Linux
machine=x86_64
gpu=NVIDIA H200, 143771 MiB, 570.86.15
gpu=Odd, name, 24564 MiB, 570.86.15
systemd=user
environment=works
base=python= reuse=no
packages=bbbb
longarm=0.2.0 aaaa
policy=act-1
taken_port=22
taken_port=8080
run_state=running
run_supervisor=41
run_service=42
run_restarts=3
run_exit=SIGKILL
run_version=0.2.0
run_revision=cccc
supervisor_alive=yes
service_alive=yes
announce={"port": 8080, "metrics_port": 9100}
readiness=ready
"""


def test_facts_are_read_from_lines() -> None:
    facts = parse([*LINES.splitlines(), *map(python_line, INTERPRETERS)])
    assert facts == Facts(
        directory="/home/a/.longarm",
        is_ours=True,
        free_bytes=GIB,
        systemd="user",
        gpus=(Gpu("NVIDIA H200", 143771, "570.86.15"), Gpu("Odd, name", 24564, "570.86.15")),
        pythons=(
            Python("/usr/bin/python3", (3, 12, 3), complete=False),
            Python("/v/bin/python", (3, 12, 3), torch="2.8.0"),
        ),
        environment_works=True,
        base="python= reuse=no",
        packages="bbbb",
        longarm="0.2.0 aaaa",
        policies=frozenset({"act-1"}),
        taken_ports=frozenset({22, 8080}),
        running=dataclasses.replace(RUNNING, restarts=3, last_exit="SIGKILL"),
    )
    assert facts.version == "0.2.0"
    assert facts.gpus[0].driver_major == 570


def test_facts_of_a_machine_that_says_next_to_nothing() -> None:
    facts = parse(["directory=/x/.longarm", "announce={broken"])
    assert not facts.running.alive
    assert not facts.writable
    assert facts.pythons == ()
