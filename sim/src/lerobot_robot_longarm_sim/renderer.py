"""Renderers draw what the cameras see; this module has what they share and picks one that works here."""

import abc
import logging

import mujoco

from lerobot_robot_longarm_sim.config_longarm_sim import RendererChoice
from lerobot_robot_longarm_sim.state import FloatArray, Frame

logger = logging.getLogger(__name__)

GL_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa)"


class RendererUnavailableError(RuntimeError):
    """A renderer does not work on this machine."""


class Renderer(abc.ABC):
    """Draws the frames of all cameras for one state. Belongs to the thread that made it."""

    name: str

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        self.model = model
        self.width = width
        self.height = height
        self.data = mujoco.MjData(model)
        self._camera_names = [model.camera(index).name for index in range(model.ncam)]

    def render(self, qpos: FloatArray) -> dict[str, Frame]:
        """Returns a new frame by camera name, all of the state that `qpos` describes."""
        self.data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        return {name: self._draw(camera) for camera, name in enumerate(self._camera_names)}

    @abc.abstractmethod
    def _draw(self, camera: int) -> Frame:
        """Returns what a camera sees of `self.data`."""

    def close(self) -> None:  # noqa: B027 - most renderers hold nothing
        """Frees what the renderer holds. It renders nothing afterwards."""


def make_renderer(choice: RendererChoice, model: mujoco.MjModel, width: int, height: int) -> Renderer:
    """Returns a renderer for frames of the given size, in pixels.

    Args:
      choice: A renderer's name, or `auto` for the first of EGL, OSMesa and plain that works; plain comes with one
        warning.

    Raises:
      RendererUnavailableError: The renderer named does not work here; the message says what to install.
    """
    # Here, since each of these modules imports the classes above.
    from lerobot_robot_longarm_sim.gl_renderer import EGLRenderer, OSMesaRenderer
    from lerobot_robot_longarm_sim.plain_renderer import PlainRenderer

    candidates: dict[str, type[Renderer]] = {"egl": EGLRenderer, "osmesa": OSMesaRenderer, "plain": PlainRenderer}
    if choice != "auto":
        return candidates[choice](model, width, height)
    reasons = []
    for renderer in (EGLRenderer, OSMesaRenderer):
        try:
            return renderer(model, width, height)
        except RendererUnavailableError as error:
            reasons.append(str(error))
    logger.warning(
        "No OpenGL here (%s): the cameras show a plain drawing of the scene. Install the system packages %s for "
        "rendered frames.",
        "; ".join(reasons),
        GL_PACKAGES,
    )
    return PlainRenderer(model, width, height)
