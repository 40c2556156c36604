"""OpenGL contexts without a window, from EGL and from OSMesa.

MuJoCo ships contexts as well, over PyOpenGL, which binds a process to one platform when it is first imported: after a
failed EGL there is no OSMesa, and `MUJOCO_GL` has to be right before MuJoCo is imported. These few calls over ctypes
have neither condition. One is left: MuJoCo takes OpenGL from a library that the process has loaded, so a process that
has drawn with EGL cannot go over to OSMesa.
"""

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from typing import Any, Protocol

import numpy as np

from lerobot_robot_longarm_sim.renderer import GL_PACKAGES, RendererUnavailableError

# Values of EGL/egl.h, EGL/eglext.h and GL/osmesa.h.
EGL_PLATFORM_DEVICE_EXT = 0x313F
EGL_OPENGL_API = 0x30A2
EGL_NONE = 0x3038
EGL_CONFIG_ATTRIBUTES = (
    (0x3033, 0x0001),  # EGL_SURFACE_TYPE: EGL_PBUFFER_BIT
    (0x3040, 0x0008),  # EGL_RENDERABLE_TYPE: EGL_OPENGL_BIT
    (0x3024, 8),  # EGL_RED_SIZE
    (0x3023, 8),  # EGL_GREEN_SIZE
    (0x3022, 8),  # EGL_BLUE_SIZE
    (0x3025, 24),  # EGL_DEPTH_SIZE
)
GL_RGBA = 0x1908
GL_UNSIGNED_BYTE = 0x1401


class GLContext(Protocol):
    """An OpenGL context, current on the thread that made it until it is freed there."""

    def free(self) -> None:
        """Destroys the context."""


def _load(names: tuple[str, ...], mode: int = ctypes.RTLD_LOCAL) -> ctypes.CDLL:
    # Mesa's software rasteriser would start a thread per core and take them all from the control loop. With none it
    # draws on the thread that asks, which is also the fastest here. Mesa reads this once, when it is first used.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    for name in names:
        try:
            return ctypes.CDLL(name, mode=mode)
        except OSError:
            continue
    raise RendererUnavailableError(f"{names[0]} not found; install the system packages {GL_PACKAGES}")


class EGLContext:
    """A context on the first EGL device that gives one: a GPU, or Mesa's software renderer."""

    def __init__(self) -> None:
        # Local until it has proved to work: MuJoCo looks for OpenGL among the process's global symbols, and a libEGL
        # without drivers must not be what it finds there when OSMesa is tried next.
        self._egl = _load(("libEGL.so.1",))
        self._declare()
        for display in self._device_displays():
            context = self._context_on(display)
            if context is not None:
                self._display, self._context = display, context
                _load(("libEGL.so.1",), mode=ctypes.RTLD_GLOBAL)
                return
        raise RendererUnavailableError(f"EGL has no usable device; install the system packages {GL_PACKAGES}")

    def _declare(self) -> None:
        egl = self._egl
        egl.eglGetProcAddress.argtypes, egl.eglGetProcAddress.restype = [c_char_p], c_void_p
        egl.eglInitialize.argtypes = [c_void_p] * 3
        egl.eglChooseConfig.argtypes = [c_void_p, c_void_p, c_void_p, c_int, c_void_p]
        egl.eglCreateContext.argtypes, egl.eglCreateContext.restype = [c_void_p] * 4, c_void_p
        egl.eglMakeCurrent.argtypes = [c_void_p] * 4
        egl.eglDestroyContext.argtypes = [c_void_p] * 2

    def _extension(self, name: bytes, restype: Any, *argtypes: Any) -> Any:
        address = self._egl.eglGetProcAddress(name)
        if not address:
            raise RendererUnavailableError(f"EGL lacks {name.decode()}")
        return ctypes.CFUNCTYPE(restype, *argtypes)(address)

    def _device_displays(self) -> list[int]:
        query_devices = self._extension(b"eglQueryDevicesEXT", c_uint, c_int, POINTER(c_void_p), POINTER(c_int))
        get_display = self._extension(b"eglGetPlatformDisplayEXT", c_void_p, c_uint, c_void_p, c_void_p)
        devices, count = (c_void_p * 16)(), c_int()
        if not query_devices(len(devices), devices, byref(count)):
            return []
        displays = (get_display(EGL_PLATFORM_DEVICE_EXT, device, None) for device in devices[: count.value])
        return [display for display in displays if display]

    def _context_on(self, display: int) -> int | None:
        """Returns a context made current on a device's display, None if it gives none."""
        egl = self._egl
        if not egl.eglInitialize(display, None, None):
            return None
        attributes = (c_int * (2 * len(EGL_CONFIG_ATTRIBUTES) + 1))(*sum(EGL_CONFIG_ATTRIBUTES, ()), EGL_NONE)
        config, count = c_void_p(), c_int()
        if not egl.eglChooseConfig(display, attributes, byref(config), 1, byref(count)) or not count.value:
            return None
        egl.eglBindAPI(EGL_OPENGL_API)
        context: int | None = egl.eglCreateContext(display, config, None, None)
        if context is not None and not egl.eglMakeCurrent(display, None, None, context):
            egl.eglDestroyContext(display, context)
            return None
        return context

    def free(self) -> None:
        """Destroys the context. The display stays: others in this process may share it."""
        self._egl.eglMakeCurrent(self._display, None, None, None)
        self._egl.eglDestroyContext(self._display, self._context)
        self._egl.eglReleaseThread()


class OSMesaContext:
    """A context of Mesa's off-screen software renderer."""

    def __init__(self) -> None:
        mesa = _load(("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"), mode=ctypes.RTLD_GLOBAL)
        mesa.OSMesaCreateContextExt.argtypes = [c_uint, c_int, c_int, c_int, c_void_p]
        mesa.OSMesaCreateContextExt.restype = c_void_p
        mesa.OSMesaMakeCurrent.argtypes = [c_void_p, c_void_p, c_uint, c_int, c_int]
        mesa.OSMesaDestroyContext.argtypes = [c_void_p]
        self._mesa = mesa
        self._context: int | None = mesa.OSMesaCreateContextExt(GL_RGBA, 24, 8, 0, None)
        # OSMesa demands a window-like buffer; MuJoCo draws into a framebuffer of its own, so a small one will do.
        self._buffer = np.zeros((16, 16, 4), dtype=np.uint8)
        if self._context is None or not self._make_current(self._context):
            raise RendererUnavailableError("OSMesa gives no context")

    def _make_current(self, context: int) -> bool:
        height, width, _ = self._buffer.shape
        return bool(self._mesa.OSMesaMakeCurrent(context, self._buffer.ctypes.data, GL_UNSIGNED_BYTE, width, height))

    def free(self) -> None:
        """Destroys the context."""
        self._mesa.OSMesaMakeCurrent(None, None, GL_UNSIGNED_BYTE, 0, 0)
        self._mesa.OSMesaDestroyContext(self._context)
