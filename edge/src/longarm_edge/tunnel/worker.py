"""The tunnel's process: connects, watches, reconnects, and reports every change as one line on standard output.

Everything it works with comes over standard input, and it ends when that ends. If the parent has not said that it ends,
it is dead, and what it had is cleared away here.
"""

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import closing
from importlib import import_module
from typing import NoReturn, TextIO

from longarm_edge.backoff import Backoff
from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.events import END, Event, HostKeyQuestion, Order, Probed, State, StateChanged, Warned
from longarm_edge.tunnel.health import HealthProbe, NotAnsweringError
from longarm_edge.tunnel.host_keys import HostKeys
from longarm_edge.tunnel.link import Connect, Link, Route
from longarm_edge.tunnel.near_end import lead, remove, socket_path
from longarm_edge.tunnel.settings import SshSettings
from longarm_edge.tunnel.tether import tie
from longarm_wire import exit_codes

PROBE_INTERVAL = 1.0
# While the service does not answer: it should be noticed soon once it does
WAITING_PROBE_INTERVAL = 0.25
# What only a person may decide, at any time
FOR_A_PERSON = (Cause.HOST_KEY_UNKNOWN, Cause.HOST_KEY_CHANGED)
# Pauses after a refusal by what let us in before, in seconds: servers lock out who is refused often
REFUSED_PAUSE = 1.0
REFUSED_CAP = 10.0
# Seconds for each way to end, the orderly one first
GRACE = 1.0


class Worker:
    """Keeps one tunnel up until stopped or until it can never work."""

    def __init__(self, order: Order, connect: Connect, out: TextIO) -> None:
        """Prepares. Nothing is sent before run.

        Args:
          order: What to do.
          connect: The backend.
          out: Where events go.
        """
        self.answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._settings = SshSettings.model_validate(order.settings)
        self._connect = connect
        self._out = out
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._link: Link | None = None
        self._was_up = order.was_up
        cap = self._settings.reconnect_cap
        self._losses = Backoff(cap=cap)
        self._refusals = Backoff(first=REFUSED_PAUSE, cap=max(REFUSED_CAP, cap))
        paths = {port: socket_path(order.directory, port) for port in self._settings.forwards}
        self._address = f"unix:{paths[self._settings.service_port]}"
        self._ports = [(socket.socket(fileno=number), paths[far]) for number, far in order.ports.items()]
        self._route = Route(
            settings=self._settings,
            forwards={path: port for port, path in paths.items()},
            host_keys=HostKeys(self._settings, self._ask if order.interactive else None),
            warn=lambda message: self._say(Warned(message=message)),
        )

    def run(self) -> int:
        """Returns an exit code once it is stopped or can never work."""
        for listener, path in self._ports:
            lead(listener, path)
        while not self._stopping.is_set():
            self._state(State.CONNECTING)
            try:
                with closing(self._connect(self._route)) as link:
                    self._link = link
                    if self._stopping.is_set():
                        break
                    self._watch(link)
            except (TunnelError, OSError) as problem:
                error = problem if isinstance(problem, TunnelError) else _lacking(problem)
                refused = isinstance(error, PermanentTunnelError)
                if refused and (error.cause in FOR_A_PERSON or not self._was_up):
                    self._state(State.FAILED, error)
                    return exit_codes.CANNOT_START
                if not self._stopping.is_set():
                    self._state(State.DOWN, error)
                    self._stopping.wait((self._refusals if refused else self._losses).next())
        return exit_codes.DONE

    def stop(self) -> None:
        """Asks run to return soon. Callable from any thread."""
        self._stopping.set()
        self.answers.put(False)
        if self._link is not None:
            self._link.ended.set()

    def _watch(self, link: Link) -> None:
        """Asks the service for its health until the link is gone, and raises why."""
        reported: StateChanged | None = None
        traffic = (0, 0)
        interval = 0.0
        with HealthProbe(self._address) as probe:
            while not link.ended.wait(interval):
                try:
                    # A little longer than a dead link takes to be found out: that is the better explanation
                    round_trip = probe.ask(self._settings.silence_timeout + 1.5)
                except NotAnsweringError as error:
                    if link.ended.is_set():
                        break
                    if isinstance(link.forward_error, PermanentTunnelError):
                        raise link.forward_error from error
                    current = StateChanged(
                        state=State.WAITING, cause=Cause.SERVICE, message=self._not_answering(link, error)
                    )
                    interval = WAITING_PROBE_INTERVAL
                else:
                    self._was_up = True
                    self._losses.reset()
                    self._refusals.reset()
                    link.forward_error = None
                    current = StateChanged(state=State.UP)
                    interval = PROBE_INTERVAL
                if current != reported:
                    reported = current
                    self._say(current)
                if current.state is State.UP:
                    sent, received = link.traffic()
                    self._say(
                        Probed(
                            round_trip_seconds=round_trip,
                            sent_bytes=max(0, sent - traffic[0]),
                            received_bytes=max(0, received - traffic[1]),
                        )
                    )
                    traffic = sent, received
        raise link.loss()

    def _not_answering(self, link: Link, error: NotAnsweringError) -> str:
        port = self._settings.service_port
        detail = link.forward_error.message if link.forward_error is not None else f"port {port} there: {error}"
        return (
            f"The SSH link to {self._settings.host} stands, but no policy service answers through it ({detail}). Start "
            "the service there, or set LONGARM_EDGE_SSH__SERVICE_PORT to its port."
        )

    def _ask(self, question: HostKeyQuestion) -> bool:
        self._say(question)
        return self.answers.get()

    def _state(self, state: State, error: TunnelError | None = None) -> None:
        self._say(
            StateChanged(
                state=state, cause=error.cause if error else None, message=error.message if error is not None else ""
            )
        )

    def _say(self, event: Event) -> None:
        with self._lock:
            try:
                print(event.model_dump_json(), file=self._out, flush=True)
            except OSError:
                # Nobody listens any more
                self._stopping.set()


def _lacking(error: OSError) -> TunnelError:
    """Returns the error for a machine that is out of something now: files, memory, room on the disk of TMPDIR."""
    where = f" ({error.filename})" if error.filename else ""
    return TunnelError(
        Cause.PROCESS,
        f"This machine has not what the tunnel needs: {error.strerror or error}{where}. Check the room there, its "
        "memory and its limits (ulimit -a).",
    )


def main() -> int:
    """Runs the process: its order comes as the first line of standard input."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's to judge
    events = _own_output()
    order = Order.model_validate_json(sys.stdin.readline())
    backend = SshSettings.model_validate(order.settings).backend
    connect: Connect = import_module(f"longarm_edge.tunnel.{backend}_link").connect
    worker = Worker(order, connect, events)
    signal.signal(signal.SIGTERM, _leave)
    tie(parent, signal.SIGTERM)
    orders = _Orders(worker, order.directory)
    threading.Thread(target=orders.listen, name="orders", daemon=True).start()
    try:
        return worker.run()
    finally:
        orders.clear_away()


class _Orders:
    """What the parent says after its order, until it ends or dies."""

    def __init__(self, worker: Worker, directory: str) -> None:
        self._worker = worker
        self._directory = directory
        self._over = threading.Event()
        self._orphaned = False

    def listen(self) -> None:
        """Passes answers on; the end of the input means the end of the process."""
        end_was_said = False
        for line in sys.stdin:
            if line.strip() == END:
                end_was_said = True
            else:
                self._worker.answers.put(json.loads(line) is True)
        self._orphaned = not end_was_said
        if self._orphaned:
            # Here, where the signal of its death cannot interrupt it
            remove(self._directory)
        self._over.set()
        self._worker.stop()
        # In the middle of connecting nobody looks. Out of there, with everything closed; and if that hangs, without
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(exit_codes.FAILED)

    def clear_away(self) -> None:
        """Sees to it that the directory of a parent that is dead is removed: it cannot do it any more."""
        # The signal of its death may be here before the end of the input
        self._over.wait(GRACE)
        if self._orphaned:
            remove(self._directory)  # with what was being made there meanwhile


def _leave(*_: object) -> NoReturn:
    raise SystemExit(exit_codes.FAILED)


def _own_output() -> TextIO:
    """Returns standard output for events alone: what a library prints goes to standard error from now on."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events
