"""Rendering on demand, on one thread that owns the renderer and with it the OpenGL context."""

import atexit
import threading
from concurrent.futures import Future
from queue import SimpleQueue

import mujoco

from lerobot_robot_longarm_sim.config_longarm_sim import RendererChoice
from lerobot_robot_longarm_sim.renderer import make_renderer
from lerobot_robot_longarm_sim.state import FloatArray, Frame

Frames = dict[str, Frame]


class RenderThreadClosedError(RuntimeError):
    """The thread was closed before it was asked."""


class RenderThread:
    """Renders for any thread, one request after the other.

    Raises:
      RendererUnavailableError: On construction, if the renderer chosen does not work here.
    """

    def __init__(self, choice: RendererChoice, model: mujoco.MjModel, width: int, height: int) -> None:
        self._requests: SimpleQueue[tuple[FloatArray, Future[Frames]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        name: Future[str] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(choice, model, width, height, name), name="longarm-sim-render", daemon=True
        )
        self._thread.start()
        self.renderer_name = name.result()
        """What draws: `egl`, `osmesa` or `plain`."""
        # A thread that is inside MuJoCo when the interpreter ends takes the process down with it.
        atexit.register(self.close)

    def _run(self, choice: RendererChoice, model: mujoco.MjModel, width: int, height: int, name: Future[str]) -> None:
        try:
            renderer = make_renderer(choice, model, width, height)
        except BaseException as error:  # noqa: BLE001 - the constructor raises it
            name.set_exception(error)
            return
        name.set_result(renderer.name)
        while (request := self._requests.get()) is not None:
            qpos, frames = request
            try:
                frames.set_result(renderer.render(qpos))
            except BaseException as error:  # noqa: BLE001 - whoever asked raises it
                frames.set_exception(error)
        renderer.close()

    def render(self, qpos: FloatArray) -> Frames:
        """Returns a new frame by camera name, all of the state that `qpos` describes; waits for its turn.

        Raises:
          RenderThreadClosedError: `close` was called first.
        """
        frames: Future[Frames] = Future()
        with self._lock:
            if self._closed:
                raise RenderThreadClosedError("rendering has ended")
            self._requests.put((qpos, frames))
        return frames.result()

    def close(self) -> None:
        """Answers the requests that wait, frees the renderer on its own thread and joins it. May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._requests.put(None)
        self._thread.join()
        atexit.unregister(self.close)
