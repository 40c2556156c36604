"""The display's process: shows frames in Rerun, the viewer that LeRobot's users know."""

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from longarm_edge.frame_process import CannotGoOnError, serve
from longarm_edge.observer import Frame

APPLICATION = "longarm"
# What the viewer keeps before it forgets the oldest; LeRobot's own bound, and its variable
MEMORY_LIMIT = os.environ.get("LEROBOT_RERUN_MEMORY_LIMIT", "10%")
JPEG_QUALITY = 80
CONNECT_SECONDS = 3.0
# Rerun's own
VIEWER_PORT = 9876
# A viewer that reads no more must not keep this process
CLOSE_SECONDS = 5.0


class Display:
    """Cameras, joint targets against joint states, queue depth, action age and latency, over ticks and seconds."""

    kept = 0

    def __init__(self, job: dict[str, Any]) -> None:
        """Opens the viewer, the connection or the file that job names.

        Raises:
          CannotGoOnError: It cannot be opened.
        """
        self._state_names: list[str] = job["state_names"]
        self._action_names: list[str] = job["action_names"]
        self._stream = rr.RecordingStream(APPLICATION)
        blueprint = _blueprint(job)
        where: str = job["where"]
        if where == "spawn":
            # The viewer's program lies beside Python, which need not be on the path
            os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
            try:
                self._stream.spawn(port=VIEWER_PORT, memory_limit=MEMORY_LIMIT, default_blueprint=blueprint)
                # It returns as well when the viewer has ended at once, for want of a screen
                socket.create_connection(("127.0.0.1", VIEWER_PORT), CONNECT_SECONDS).close()
            except RuntimeError as error:
                raise CannotGoOnError(f"The Rerun viewer does not start: {str(error).splitlines()[0]}") from error
            except OSError as error:
                raise CannotGoOnError(
                    "The Rerun viewer has not opened on this screen. Start `rerun` by hand to see why, and then pass "
                    f"--display=127.0.0.1:{VIEWER_PORT}"
                ) from error
        elif where.endswith(".rrd"):
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._stream.save(where, default_blueprint=blueprint)
            except (OSError, RuntimeError) as error:
                raise CannotGoOnError(f"{where} cannot be written: {error}") from error
        else:
            _check_viewer(where)
            self._stream.connect_grpc(f"rerun+http://{where}/proxy", default_blueprint=blueprint)
        for kind in ("state", "target"):
            for name in self._state_names if kind == "state" else self._action_names:
                self._stream.log(["joints", name, kind], rr.SeriesLines(names=kind), static=True)
        self._start: float | None = None
        self._count = 0

    def add(self, frame: Frame) -> None:
        """Shows one tick; what it does not have is left out."""
        done, reading = frame.executed, frame.reading
        if self._start is None:
            self._start = done.at
        self._stream.set_time("tick", sequence=done.tick)
        self._stream.set_time("time", duration=done.at - self._start)
        for name, value in zip(self._action_names, done.command.tolist(), strict=True):
            self._number(["joints", name, "target"], value)
        self._number(["queue", "depth"], done.depth)
        self._number(["delay", "action age"], None if done.age is None else done.age * 1000)
        self._number(["delay", "action mean age"], None if done.mean_age is None else done.mean_age * 1000)
        self._number(["delay", "latency"], None if frame.latency is None else frame.latency * 1000)
        if reading is not None:
            for name, value in zip(self._state_names, reading.state.tolist(), strict=True):
                self._number(["joints", name, "state"], value)
            for name, image in reading.images.items():
                self._stream.log(
                    ["cameras", name], rr.Image(np.ascontiguousarray(image)).compress(jpeg_quality=JPEG_QUALITY)
                )
        self._count += 1

    def close(self) -> str:
        """Sends what waits, for CLOSE_SECONDS at most."""
        watchdog = threading.Timer(CLOSE_SECONDS, os._exit, (0,))
        watchdog.daemon = True
        watchdog.start()
        self._stream.disconnect()
        watchdog.cancel()
        return f"{self._count} ticks"

    def _number(self, path: list[str], value: float | None) -> None:
        if value is not None:
            self._stream.log(path, rr.Scalars(value))


def _check_viewer(address: str) -> None:
    """Rerun itself would wait for a viewer without a word.

    Raises:
      CannotGoOnError: Nothing answers at address.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise CannotGoOnError(f"No Rerun viewer answers at {address} ({error}). Start one there: rerun") from error


def _blueprint(job: dict[str, Any]) -> rrb.Blueprint:
    joints = list(dict.fromkeys(job["action_names"] + job["state_names"]))
    cameras = [rrb.Spatial2DView(origin=rr.new_entity_path(["cameras", name]), name=name) for name in job["cameras"]]
    series = [rrb.TimeSeriesView(origin=rr.new_entity_path(["joints", name]), name=name) for name in joints]
    health = [
        rrb.TimeSeriesView(origin="queue", name="queue depth (actions)"),
        rrb.TimeSeriesView(origin="delay", name="action age and latency (ms)"),
    ]
    rows = [rrb.Horizontal(*cameras)] if cameras else []
    return rrb.Blueprint(rrb.Vertical(*rows, rrb.Grid(*series), rrb.Horizontal(*health)), collapse_panels=True)


if __name__ == "__main__":
    serve(Display)
