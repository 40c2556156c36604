"""The other end of a frame pipe: what every process that reads frames has to do first and last."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from longarm_edge.frame_stream import read_frames, read_job
from longarm_edge.observer import Frame
from longarm_edge.stop import STOP_SIGNALS

# Behind the control loop and the planner on a machine with few cores
NICENESS = 5


class Consumer(Protocol):
    """Does something with frames."""

    @property
    def kept(self) -> int:
        """Frames that are put away for good."""
        ...

    def add(self, frame: Frame) -> None:
        """Takes the next frame."""
        ...

    def close(self) -> str:
        """Puts away what there is and returns a word on it, for a person."""
        ...


class CannotGoOnError(Exception):
    """The process cannot do its work; the message says what a person can do."""


def serve(open_consumer: Callable[[dict[str, Any]], Consumer]) -> None:
    """Reads frames from stdin until it ends, and answers on stdout as FramePipe expects.

    Args:
      open_consumer: Makes the consumer for a job; it and the consumer may raise CannotGoOnError.
    """
    for number in STOP_SIGNALS:  # a supervisor stops the whole group; here the end of stdin is the end
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    # Whatever a library prints must not come between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Nor may a program that a library starts hold the edge's end of the pipe open
    frames = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())

    def answer(**words: Any) -> None:
        try:
            answers.write(json.dumps(words) + "\n")
        except BrokenPipeError:  # the edge is gone: nobody wants to know, and the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())

    try:
        answer(done=_work(open_consumer, frames, answer))
    except CannotGoOnError as error:
        answer(failed=str(error))
    except Exception as error:
        answer(failed=f"{type(error).__name__}: {error}")
        raise
    # Not by way of the interpreter's end, where a writer that has failed would try again what it has in memory
    answers.flush()
    os._exit(0)


def _work(open_consumer: Callable[[dict[str, Any]], Consumer], stream: BinaryIO, answer: Callable[..., None]) -> str:
    consumer = open_consumer(read_job(stream))
    answer(ready=True)
    try:
        for count, frame in enumerate(_frames(stream), 1):
            consumer.add(frame)
            answer(taken=count, kept=consumer.kept)
        return consumer.close()
    finally:
        answer(kept=consumer.kept)


def _frames(stream: BinaryIO) -> Iterator[Frame]:
    try:
        yield from read_frames(stream)
    except OSError:  # as good as the end
        return
