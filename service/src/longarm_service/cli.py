"""The command longarm-service."""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from longarm_service import __version__
from longarm_service.app import Service, StartupError
from longarm_service.fork_server import LOG_FORMAT
from longarm_service.policy import PolicyLoader
from longarm_service.process_loader import ProcessLoader
from longarm_service.settings import ServiceSettings
from longarm_wire import exit_codes
from longarm_wire.notify import Notifier
from longarm_wire.settings import ConfigurationError

PROGRAM = "longarm-service"
USAGE = f"""usage: {PROGRAM} [run] [--setting VALUE ...]
       {PROGRAM} check-config [--setting VALUE ...]
       {PROGRAM} --version

Serves action chunks of LeRobot policies to robots, over gRPC on 127.0.0.1:8080.

commands:
  run            serve until SIGTERM or Ctrl-C (the default)
  check-config   print the settings that would be in effect, and where something is wrong

Settings come from flags, then environment variables LONGARM_SERVICE_*, then a file .env, then defaults.
`{PROGRAM} run --help` lists them.

exit codes: 0 done, 1 failed while running, 2 bad usage, 3 can never start as configured
"""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Nothing on the event loop takes a tenth of a second; this is what a machine that swaps may take
STUCK_SECONDS = 30.0

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None, imports: Sequence[str] = ()) -> NoReturn:
    """Runs the command and exits with one of longarm_wire.exit_codes.

    Args:
      arguments: Of the command line; None for this program's own.
      imports: Modules with types of policies that LeRobot does not find by itself.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    if rest[:1] in (["--help"], ["-h"], ["help"]):
        print(USAGE, end="")  # noqa: T201
        sys.exit(exit_codes.DONE)
    if rest == ["--version"]:
        print(f"{PROGRAM} {__version__}")  # noqa: T201
        sys.exit(exit_codes.DONE)
    command = rest.pop(0) if rest and not rest[0].startswith("-") else "run"
    if command not in ("run", "check-config"):
        _say(f"There is no command {command!r}.\n{USAGE}")
        sys.exit(exit_codes.BAD_USAGE)
    try:
        settings = ServiceSettings.load(rest, program=f"{PROGRAM} {command}")
    except ConfigurationError as error:
        for problem in error.problems:
            _say(problem)
        sys.exit(exit_codes.CANNOT_START)
    if command == "check-config":
        for name, value in settings.effective().items():
            print(f"{name}={value}")  # noqa: T201
        sys.exit(exit_codes.DONE)
    sys.exit(run(settings, lambda: _process_loader(settings, imports)))


def run(settings: ServiceSettings, make_loader: Callable[[], PolicyLoader]) -> int:
    """Serves until a signal and returns the exit code. A process that cannot end in order is left at once instead."""
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=LOG_FORMAT,
        stream=sys.stderr,
        force=True,
    )
    try:
        busy = asyncio.run(_serve(settings, make_loader))
    except StartupError as error:
        _say(str(error))
        _leave_at_once(exit_codes.CANNOT_START if error.final else exit_codes.FAILED)
    except Exception:
        logger.exception("The service failed")
        _leave_at_once(exit_codes.FAILED)
    logger.info("stopped")
    if busy:
        # A forward pass or a load still runs and cannot be interrupted; torch must not be torn down under it
        _leave_at_once(exit_codes.DONE)
    return exit_codes.DONE


def _process_loader(settings: ServiceSettings, imports: Sequence[str]) -> PolicyLoader:
    return ProcessLoader(
        {
            "device": settings.policy_device,
            "dtype": settings.dtype,
            "compiled": settings.compile,
            "torch_threads": settings.torch_threads,
            "trusted": settings.trusted_policies,
        },
        load_timeout_seconds=settings.load_timeout,
        predict_timeout_seconds=settings.predict_timeout,
        imports=imports,
        log_level=settings.log_level,
    )


async def _serve(settings: ServiceSettings, make_loader: Callable[[], PolicyLoader]) -> bool:
    """Serves until a signal and returns whether a thread is still busy."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            _say(f"Second signal ({number.name}): leaving at once.")
            _leave_at_once(exit_codes.FAILED)
        logger.info("%s: stopping; what runs gets %g s", number.name, settings.drain_timeout)
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    service = Service(settings, make_loader)
    notifier = Notifier(os.environ)
    async with service:
        watching = asyncio.create_task(_watch_the_loop(), name="watch the loop")
        preparing = asyncio.create_task(service.prepare(), name="prepare")
        stopping = asyncio.create_task(stop.wait(), name="wait for a signal")
        await asyncio.wait([preparing, stopping], return_when=asyncio.FIRST_COMPLETED)
        if preparing.done():
            preparing.result()
            notifier.tell("READY=1", "STATUS=ready")
            failing = asyncio.create_task(service.failure(), name="wait for a failure")
            await asyncio.wait([failing, stopping], return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
        else:
            preparing.cancel()
        notifier.tell("STOPPING=1", "STATUS=draining")
    watching.cancel()
    return service.busy


async def _watch_the_loop() -> None:
    """Ends the process if the event loop stands still, whatever holds it: a supervisor starts a new one.

    The watch is a thread that needs no interpreter. It says where every thread stood.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
            await asyncio.sleep(STUCK_SECONDS / 10)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)  # noqa: T201


def _leave_at_once(code: int) -> NoReturn:
    """Ends the process without waiting for threads."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
