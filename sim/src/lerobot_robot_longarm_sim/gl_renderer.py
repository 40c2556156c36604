"""MuJoCo's own OpenGL renderer, on an EGL or an OSMesa context."""

import mujoco
import numpy as np

from lerobot_robot_longarm_sim.gl_contexts import EGLContext, GLContext, OSMesaContext
from lerobot_robot_longarm_sim.renderer import Renderer, RendererUnavailableError
from lerobot_robot_longarm_sim.state import Frame

MAX_GEOMS = 200


class GLRenderer(Renderer):
    """Draws through MuJoCo on an OpenGL context of its own. MuJoCo releases the interpreter lock while it draws."""

    context_class: type[EGLContext] | type[OSMesaContext]

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        super().__init__(model, width, height)
        self._gl: GLContext = self.context_class()
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:
            self._gl.free()
            raise RendererUnavailableError(f"MuJoCo cannot draw with {self.name}: {error}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._options = mujoco.MjvOption()
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value

    def _draw(self, camera: int) -> Frame:
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self.model, self.data, self._options, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._viewport, self._context)
        # OpenGL's first row is the lowest.
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        self._context.free()
        self._gl.free()


class EGLRenderer(GLRenderer):
    """OpenGL by EGL: a GPU where there is one, else Mesa's software renderer."""

    name = "egl"
    context_class = EGLContext


class OSMesaRenderer(GLRenderer):
    """OpenGL by OSMesa, in software."""

    name = "osmesa"
    context_class = OSMesaContext
