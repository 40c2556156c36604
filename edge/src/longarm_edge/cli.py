"""The command longarm-edge."""

import faulthandler
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from rich.console import Console

from longarm_edge import __version__
from longarm_edge.console import set_up_logging
from longarm_edge.provision.arguments import Arguments, understand
from longarm_edge.provision.errors import ProvisionError
from longarm_edge.settings import EdgeSettings
from longarm_edge.tunnel.events import HostKeyQuestion
from longarm_edge.tunnel.terminal import asker
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError

FAR_COMMANDS = ("status", "logs", "stop", "restart", "down")
UP_WITHOUT_ROBOT = """\
The service is ready. To drive a robot, add LeRobot's own flags: --robot.type=… --robot.port=…
`longarm-edge status`, `logs -f`, `stop`, `restart` and `down` with the same machine look after it."""

USAGE = f"""\
longarm-edge {__version__}: runs a LeRobot policy from a far GPU on the robot at hand.

usage: longarm-edge COMMAND [--setting=value ...] [--robot.…=value ...]

on the robot's machine:
  run           drive the robot (the default); with --ssh.host through an SSH tunnel
  doctor        check everything a run needs, measure the link, and say what to set; --json for scripts
  demo          drive a simulated arm from a policy service on this machine: no robot, no GPU, no network
  demo-ssh      the same, through a private sshd and a tunnel
  leave         apply the stop rule to an arm whose run was killed, or could not; for service managers
  check-config  print the effective settings, secrets masked, and check the robot's configuration
  help          this text; `longarm-edge run --help` lists every setting

on a GPU machine that ssh reaches, as [user@]host [-p PORT] [-i KEY]:
  up            install the service if need be, start it, wait until it is ready, and run
  status, logs [-f], stop, restart
  down          stop and remove everything of Longarm there

Robot flags are LeRobot's own: --robot.type=so101_follower --robot.port=/dev/ttyACM0 --robot.cameras="{{…}}"
Every setting is also an environment variable LONGARM_EDGE_*, and may stand in a file .env.

exit codes: 0 done, 1 failed while running, 2 bad usage, 3 can never start as configured, 130 interrupted;
of the doctor: 0 all is well, 4 warnings, 1 something failed
"""


@dataclass(frozen=True)
class Invocation:
    """What a command gets.

    Attributes:
      name: Of the command.
      settings: All of them.
      robot_flags: LeRobot's own.
      console: Where a person looks.
      as_json: Whether a script reads instead.
      far: What was said of the far machine beyond settings.
    """

    name: str
    settings: EdgeSettings
    robot_flags: list[str]
    console: Console
    as_json: bool
    far: Arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits with its code."""
    # A watchdog ends a stuck process by SIGABRT: the log then says where each thread stood
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    sys.exit(_main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    commands = {
        "run": _run,
        "demo": _demo,
        "demo-ssh": _demo,
        "doctor": _doctor,
        "leave": _leave,
        "check-config": _check_config,
        "up": _up,
        **dict.fromkeys(FAR_COMMANDS, _manage),
    }
    if arguments and arguments[0] in ("help", "--help", "-h"):
        print(USAGE, end="")  # noqa: T201
        return exit_codes.DONE
    if arguments and arguments[0] == "--version":
        print(f"longarm-edge {__version__}")  # noqa: T201
        return exit_codes.DONE
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    if name not in commands:
        print(f"longarm-edge: there is no command {name!r}\n\n{USAGE}", end="", file=sys.stderr)  # noqa: T201
        return exit_codes.BAD_USAGE
    # Emoji codes are for those who write them: a path or a machine may have ":key:" in its name
    console = Console(stderr=True, emoji=False)
    try:
        robot_flags, others = _split(arguments)
        as_json = name == "doctor" and "--json" in others
        if as_json:
            others.remove("--json")
        others = _unabbreviated(others)
        is_far = name in ("up", *FAR_COMMANDS)
        far = understand(others, EdgeSettings.switches()) if is_far else Arguments(tuple(others))
        settings = EdgeSettings.load(far.flags, program=f"longarm-edge {name}")
        set_up_logging(settings.log_level, console)
        return commands[name](Invocation(name, settings, robot_flags, console, as_json, far))
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"longarm-edge: {problem}", file=sys.stderr)  # noqa: T201
        return exit_codes.CANNOT_START
    except ProvisionError as error:
        print(f"longarm-edge: {error}", file=sys.stderr)  # noqa: T201
        return exit_codes.FAILED
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns LeRobot's --robot.* flags, all written with «=», and the rest.

    Raises:
      ConfigurationError: One of them has no value.
    """
    robot_flags: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--robot."):
            others.append(argument)
        elif "=" in argument:
            robot_flags.append(argument)
        else:
            value = next(rest, "")
            # A flag is no value; a negative number is
            if not value or re.match(r"-\D", value):
                found = value or "the end of the line"
                remedy = f"LeRobot's flags that are on or off are written {argument}=true."
                raise ConfigurationError([f"Expected a value after {argument}, found {found}. {remedy}"])
            robot_flags.append(f"{argument}={value}")
    return robot_flags, others


def _unabbreviated(arguments: Sequence[str]) -> list[str]:
    """Returns arguments with what may be left out: --record DIR for --record.dir, --display for --display=spawn."""
    full = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        name, equals, value = argument.partition("=")
        if argument == "--display" and following.startswith("--"):
            equals, value = "=", "spawn"
        full.append(f"{'--record.dir' if name == '--record' else name}{equals}{value}")
    return full


def _run(it: Invocation) -> int:
    # LeRobot takes seconds to import: help and configuration errors need not wait for it
    from longarm_edge.lerobot_robot import make_robot
    from longarm_edge.told_run import run_to_exit_code

    robot = make_robot(it.settings.robot, it.robot_flags, it.settings.fps)
    return run_to_exit_code(it.settings, robot, it.console).exit_code


def _leave(it: Invocation) -> int:
    from longarm_edge.leave import leave
    from longarm_edge.robot import Robot
    from longarm_edge.schedule import MonotonicClock

    settings = it.settings

    def without_cameras() -> Robot:
        # Mostly there is nothing to do, and no need for LeRobot
        from longarm_edge.lerobot_robot import make_robot

        return make_robot(settings.robot, it.robot_flags, settings.fps, cameras=False)

    return leave(settings, without_cameras, MonotonicClock())


def _demo(it: Invocation) -> int:
    from longarm_edge.demo import demo

    return demo(it.settings, it.robot_flags, it.console, through_ssh=it.name == "demo-ssh")


def _up(it: Invocation) -> int:
    from longarm_edge.provision import up

    settings = it.settings
    service = up(
        settings.ssh,
        settings.far,
        it.console,
        policy=settings.pretrained_name_or_path,
        device=settings.policy_device,
        dtype=settings.dtype,
        ask=asker(),
    )
    if not (settings.robot or it.robot_flags):
        it.console.print(UP_WITHOUT_ROBOT, highlight=False)
        return exit_codes.DONE
    ports = {"service_port": service.port, "metrics_port": service.metrics_port}
    own = {"ssh": settings.ssh.model_copy(update=ports), "pretrained_name_or_path": service.policy}
    return _run(replace(it, settings=settings.model_copy(update=own)))


def _manage(it: Invocation) -> int:
    from longarm_edge.provision import manage

    settings, far = it.settings, it.far
    return manage(
        it.name,
        settings.ssh,
        settings.far,
        it.console,
        follow=far.follow,
        line_count=far.line_count,
        ask=asker(),
    )


def _doctor(it: Invocation) -> int:
    from longarm_edge.doctor.examine import Examination
    from longarm_edge.doctor.findings import as_json, exit_code, show

    with it.console.status("examining") as status:
        ask = asker()

        def ask_in_peace(question: HostKeyQuestion) -> bool:
            status.stop()  # it would draw over what the person reads and types
            try:
                return ask is not None and ask(question)
            finally:
                status.start()

        examination = Examination(it.settings, it.robot_flags, ask_in_peace if ask is not None else None)
        findings = list(examination.findings())
    if it.as_json:
        print(as_json(findings, examination.measured))  # noqa: T201
    else:
        show(findings, Console())
    return exit_code(findings)


def _check_config(it: Invocation) -> int:
    for name, value in it.settings.effective().items():
        print(f"{name}={value}")  # noqa: T201
    if it.settings.robot or it.robot_flags:
        from longarm_edge.lerobot_robot import parse_robot

        print(f"# robot: {parse_robot(it.settings.robot, it.robot_flags)}")  # noqa: T201
    return exit_codes.DONE
