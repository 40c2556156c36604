"""The tunnel as the edge sees it: a process of its own, kept alive, whose near end never changes."""

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from longarm_edge.backoff import Backoff
from longarm_edge.repeats import Repeats
from longarm_edge.tunnel.errors import Cause, PermanentTunnelError, TunnelError
from longarm_edge.tunnel.events import END, EVENT, Event, HostKeyQuestion, Order, State, StateChanged, Warned
from longarm_edge.tunnel.near_end import NearEnd, socket_path
from longarm_edge.tunnel.settings import SshSettings
from longarm_wire import exit_codes
from longarm_wire.settings import environment_for_others

logger = logging.getLogger(__name__)

# Seconds for the process to end when asked to
END_TIMEOUT = 4.0

Ask = Callable[[HostKeyQuestion], bool]
Observer = Callable[[Event], None]


class Tunnel:
    """An SSH tunnel to the policy service and to its metrics. Use as a context manager, and open it.

    Attributes:
      address: Leads to the service, as gRPC dials it: a Unix socket that only this user reaches. The same for the life
        of the tunnel.
      leads_to: Where address leads to, for a person.
      metrics_address: Local host:port that leads to the service's metrics; empty if there is to be none.
    """

    def __init__(self, settings: SshSettings, *, ask: Ask | None = None, observers: tuple[Observer, ...] = ()) -> None:
        """Takes the near end. Nothing is sent before open.

        Args:
          settings: Where to and how.
          ask: Decides about the key of a host that is not known yet, on the thread that opens. None: nobody is there
            to ask, and such a host is refused.
          observers: Called with every event, on the tunnel's own thread; they must not block.

        Raises:
          PermanentTunnelError: A local port is taken, or there is no place for a socket.
        """
        self._settings = settings
        self._ask = ask
        self._observers = observers
        self._near_end = NearEnd(settings)
        self.address = f"unix:{socket_path(self._near_end.directory, settings.service_port)}"
        self.leads_to = f"port {settings.service_port} of {settings.host}"
        self.metrics_address = f"127.0.0.1:{settings.local_metrics_port}" if settings.local_metrics_port else ""
        self._changed = threading.Condition()
        self._status = StateChanged(state=State.CLOSED)
        self._question: HostKeyQuestion | None = None
        self._opening = False
        self._was_up = False
        self._closing = threading.Event()
        self._repeats = Repeats()
        self._process: subprocess.Popen[str] | None = None
        # The thread that starts processes must outlive them: they are tied to it, see tether.tie
        self._thread = threading.Thread(target=self._supervise, name="tunnel", daemon=True)

    @property
    def state(self) -> State:
        """Where the tunnel stands."""
        return self._status.state

    @property
    def message(self) -> str:
        """What last went wrong, and what to do; empty while the tunnel is up."""
        return self._status.message

    @property
    def failure(self) -> PermanentTunnelError | None:
        """Why the tunnel can never be up again as configured, or None."""
        status = self._status
        if status.state is not State.FAILED:
            return None
        return PermanentTunnelError(status.cause or Cause.PROCESS, status.message)

    def open(self, timeout: float) -> None:
        """Returns once the service answers gRPC health through the tunnel. From then on the tunnel keeps itself up.

        Args:
          timeout: Seconds to wait; time that a person takes to answer a question does not count.

        Raises:
          PermanentTunnelError: It can never be up as configured: exit code 3.
          TunnelError: It is not up in time. The cause is the step that failed. It goes on trying until closed.
        """
        self._opening = True
        if self._thread.ident is None:
            self._thread.start()
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._status.state is not State.UP:
                if failure := self.failure:
                    raise failure
                left = deadline - time.monotonic()
                if left <= 0:
                    self._opening = False
                    status = self._status
                    raise TunnelError(
                        status.cause or Cause.PROCESS,
                        f"The tunnel to {self._settings.host} is not up after {timeout:g} s. "
                        f"{status.message or f'It is still {status.state.value}.'}",
                    )
                if self._question is not None:
                    deadline += self._answer(self._question)
                    continue
                self._changed.wait(left)
        self._opening = False

    def close(self) -> None:
        """Ends the tunnel and gives its near end back. A second close does nothing."""
        self._closing.set()
        with self._changed:
            self._tell_end()
        if self._thread.ident is not None:
            self._thread.join(END_TIMEOUT)
            with self._changed:
                if self._process is not None:
                    self._process.kill()
            self._thread.join()
        self._near_end.close()
        if self.state not in (State.CLOSED, State.FAILED):
            self._handle(StateChanged(state=State.CLOSED))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, question: HostKeyQuestion) -> float:
        """Has the person answer and returns the seconds that took. Holds the condition, lets go of it meanwhile."""
        self._question = None
        self._changed.release()
        asked = time.monotonic()
        try:
            answer = self._ask(question) if self._ask is not None else False
        finally:
            self._changed.acquire()
        self._send(answer)
        return time.monotonic() - asked

    def _supervise(self) -> None:
        try:
            self._keep_running()
        except Exception as error:
            # An exception nobody foresaw must not leave a tunnel that nobody looks after, without a word
            logger.exception("the tunnel failed")
            message = f"The tunnel failed: {error}"
            self._handle(StateChanged(state=State.FAILED, cause=Cause.PROCESS, message=message))

    def _keep_running(self) -> None:
        backoff = Backoff(cap=self._settings.reconnect_cap)
        while not self._closing.is_set():
            try:
                ended = f"ended with exit code {self._run_process(backoff)}"
            except OSError as error:  # too many processes or files, say
                ended = f"could not be run: {error.strerror}"
            if self._closing.is_set() or self.failure:
                break
            self._handle(
                StateChanged(
                    state=State.DOWN,
                    cause=Cause.PROCESS,
                    message=f"The tunnel's process {ended}. It is started again.",
                )
            )
            self._closing.wait(backoff.next())

    def _run_process(self, backoff: Backoff) -> int:
        """Runs one process to its end and returns its exit code."""
        order = Order(
            settings=self._settings.to_json(),
            directory=self._near_end.directory,
            ports=self._near_end.ports,
            interactive=self._ask is not None,
            was_up=self._was_up,
        )
        # -P: the working directory is no place to import from. Secrets are no business of its environment either
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "longarm_edge.tunnel"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment_for_others(),
            pass_fds=tuple(self._near_end.ports),
            start_new_session=True,  # the terminal's signals are for us to pass on
        ) as process:
            with self._changed:
                self._process = process
                self._send_line(order.model_dump_json())
                if self._closing.is_set():
                    self._tell_end()
            try:
                assert process.stdout is not None  # noqa: S101  # it is a pipe
                for line in process.stdout:
                    try:
                        event = EVENT.validate_json(line)
                    except ValidationError:
                        continue  # the last words of a process that was killed
                    if isinstance(event, StateChanged) and event.state is State.UP:
                        self._was_up = True
                        backoff.reset()
                    self._handle(event)
                return process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                return exit_codes.FAILED
            finally:
                with self._changed:
                    self._process = None
                process.kill()

    def _handle(self, event: Event) -> None:
        match event:
            case StateChanged():
                if event.state is State.DOWN:
                    if self._repeats.lets_through(event.message):
                        logger.warning("%s", event.message)
                elif event.state is State.UP:
                    self._repeats.forget()
                    logger.info("the tunnel to %s is up", self._settings.host)
                elif event.message and self._repeats.lets_through(event.message):
                    logger.info("%s", event.message)
            case Warned():
                logger.warning("%s", event.message)
        with self._changed:
            if isinstance(event, StateChanged):
                # While it connects again, why it went down still is what there is to know
                if event.state is State.CONNECTING:
                    event = event.model_copy(update={"cause": self._status.cause, "message": self._status.message})
                self._status = event
            elif isinstance(event, HostKeyQuestion):
                if self._opening:
                    self._question = event
                else:
                    # The person who started this has gone on to other things
                    self._send(False)
            self._changed.notify_all()
        for observer in self._observers:
            observer(event)

    def _send(self, answer: bool) -> None:
        self._send_line("true" if answer else "false")

    def _send_line(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            # A process that is gone is noticed by whoever reads from it
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(f"{line}\n")
                self._process.stdin.flush()

    def _tell_end(self) -> None:
        """Says that it ends here, and ends the process's input: without that word it takes us for dead."""
        self._send_line(END)
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
