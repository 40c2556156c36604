"""Draws frames with one renderer and saves them: a process of its own, since MuJoCo takes one OpenGL per process.

Usage: draw_frames.py RENDERER FILE, where RENDERER may also be `auto-without-egl`. Exits 77 if it does not work here.
"""

import sys

import numpy as np

from lerobot_robot_longarm_sim.gl_contexts import EGLContext
from lerobot_robot_longarm_sim.renderer import RendererUnavailableError, make_renderer
from lerobot_robot_longarm_sim.world import World

name, path = sys.argv[1:]
if name == "auto-without-egl":
    EGLContext._device_displays = lambda self: []
    name = "auto"
world = World()
try:
    renderer = make_renderer(name, world.model, 320, 240)
except RendererUnavailableError as error:
    sys.stderr.write(str(error))
    sys.exit(77)
home = renderer.render(world.instant().qpos)
world.place_arm(world.limits.mean(axis=1) + 20.0)
moved = renderer.render(world.instant().qpos)
world.reset()
again = renderer.render(world.instant().qpos)
renderer.close()
np.savez(path, renderer=renderer.name, home=list(home.values()), moved=list(moved.values()), again=list(again.values()))
