"""Calls made beside the thread that wants them: a signal cannot tear them, and one that hangs holds up nobody."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

# How often is looked, in seconds; a signal wakes the main thread at once
LOOK_SECONDS = 0.05


def aside[T](call: Callable[[], T], name: str) -> "Future[T]":
    """Runs call on a thread of its own, which does not keep the process from ending, and returns its future."""
    future: Future[T] = Future()
    threading.Thread(target=settle, args=(future, call), name=name, daemon=True).start()
    return future


def settle[T](future: "Future[T]", call: Callable[[], T]) -> None:
    """Runs call here, and gives future what it returns or raises."""
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001  # raised again by whoever asks for the result
        future.set_exception(error)
    else:
        future.set_result(result)


def looked_after[T](future: "Future[T]", look: Callable[[], None]) -> T:
    """Waits for future and returns its result, or raises its exception; meanwhile calls look again and again.

    Where look raises, the call goes on by itself.
    """
    while not wait([future], LOOK_SECONDS).done:
        look()
    return future.result()
