"""The simulated world: arm, table, cube and bin, stepped in real time on a thread of its own."""

import atexit
import threading
import time
from collections.abc import Mapping
from importlib import resources

import mujoco
import numpy as np

from lerobot_robot_longarm_sim.joints import GRIPPER, HOME, JOINTS
from lerobot_robot_longarm_sim.state import FloatArray, GroundTruth, Instant
from lerobot_robot_longarm_sim.step_schedule import StepSchedule

# Two steps a wake: 200 wakes a second instead of 400, and as many fewer disturbances of the control loop's thread.
STEPS_PER_WAKE = 2

CUBE_HOME = (0.22, 0.09)
CUBE_REST_HEIGHT = 0.0126
# With a seed the cube lies somewhere in this rectangle: on the mat, within reach, clear of the arm at home. Metres.
CUBE_LOW, CUBE_HIGH = (0.19, 0.04), (0.28, 0.14)

# Inside of the bin relative to its body, metres: half the width of its floor, and the height of its rim.
BIN_HALF_WIDTH, BIN_RIM = 0.055, 0.05

# Actuators are in MuJoCo's group 0; this bit of `opt.disableactuator` takes the torque off all of them.
ALL_ACTUATORS = 1 << 0


class World:
    """MuJoCo's model and state, guarded by one lock that is held for a few steps at a time and never while rendering.

    All methods may be called from any thread. `start` and `stop` belong to one owner, and may alternate.
    """

    def __init__(self, seed: int | None = None) -> None:
        scene = resources.files("lerobot_robot_longarm_sim").joinpath("scene.xml").read_text(encoding="utf-8")
        self.model = mujoco.MjModel.from_xml_string(scene)
        self._data = mujoco.MjData(self.model)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._random = None if seed is None else np.random.default_rng(seed)

        joints = [self.model.joint(name) for name in JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._velocities = np.array([joint.dofadr[0] for joint in joints])
        self._actuators = np.array([self.model.actuator(name).id for name in JOINTS])
        self._cube_qpos = int(self.model.joint("cube").qposadr[0])
        self._cube_velocity = int(self.model.joint("cube").dofadr[0])
        ranges = np.array([joint.range for joint in joints])
        self._units_per_radian = np.full(len(JOINTS), np.degrees(1.0))
        self._units_per_radian[JOINTS.index(GRIPPER)] = 100.0 / ranges[JOINTS.index(GRIPPER), 1]
        self.limits: FloatArray = ranges * self._units_per_radian[:, None]
        """Joint limits in robot units, shape (6, 2), inclusive."""
        self.reset()

    @property
    def is_running(self) -> bool:
        """Whether simulated time passes."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Lets time pass, one simulated second a second. The motors hold the present pose."""
        self._stopping.clear()
        with self._lock:
            self._data.ctrl[self._actuators] = self._data.qpos[self._qpos]
            self.model.opt.disableactuator = 0
        self._thread = threading.Thread(target=self._run, name="longarm-sim-physics", daemon=True)
        self._thread.start()
        # A thread that is inside MuJoCo when the interpreter ends takes the process down with it.
        atexit.register(self.stop)

    def stop(self) -> None:
        """Stops time and joins the thread. Does nothing if time stands still already."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            atexit.unregister(self.stop)

    def _run(self) -> None:
        timestep = float(self.model.opt.timestep)
        schedule = StepSchedule(timestep, time.monotonic())
        while not self._stopping.is_set():
            due = schedule.take_due(time.monotonic())
            if due:
                with self._lock:
                    mujoco.mj_step(self.model, self._data, nstep=due)
            self._stopping.wait(max(0.0, schedule.due_time(STEPS_PER_WAKE) - time.monotonic()))

    def advance(self, seconds: float) -> None:
        """Simulates some time at once, as fast as the processor allows."""
        with self._lock:
            mujoco.mj_step(self.model, self._data, nstep=round(seconds / float(self.model.opt.timestep)))

    def instant(self) -> Instant:
        """Returns a copy of the present state."""
        with self._lock:
            qpos = self._data.qpos.copy()
            seconds = float(self._data.time)
        return Instant(seconds=seconds, qpos=qpos, joints=qpos[self._qpos] * self._units_per_radian)

    def command(self, targets: FloatArray) -> None:
        """Gives the servos new targets: robot units, shape (6,), within `limits`."""
        with self._lock:
            self._data.ctrl[self._actuators] = targets / self._units_per_radian

    def release(self) -> None:
        """Takes the torque off all motors, until the next `start`."""
        with self._lock:
            self.model.opt.disableactuator = ALL_ACTUATORS

    def reset(self) -> None:
        """Puts the arm at home and the cube on the table, at rest; the servos hold the arm there."""
        x, y = CUBE_HOME if self._random is None else self._random.uniform(CUBE_LOW, CUBE_HIGH)
        with self._lock:
            mujoco.mj_resetData(self.model, self._data)
            self._put_arm(ordered(HOME))
            self._put_cube((x, y, CUBE_REST_HEIGHT))
            mujoco.mj_forward(self.model, self._data)

    def place_arm(self, joints: FloatArray) -> None:
        """Puts the arm in a pose at once, robot units, shape (6,), at rest; the servos hold it there."""
        with self._lock:
            self._put_arm(joints)
            mujoco.mj_forward(self.model, self._data)

    def _put_arm(self, joints: FloatArray) -> None:
        self._data.qpos[self._qpos] = joints / self._units_per_radian
        self._data.qvel[self._velocities] = 0.0
        self._data.ctrl[self._actuators] = self._data.qpos[self._qpos]

    def place_cube(self, position: tuple[float, float, float]) -> None:
        """Puts the cube's centre at a position, metres, level and at rest; it may fall from there."""
        with self._lock:
            self._put_cube(position)
            mujoco.mj_forward(self.model, self._data)

    def _put_cube(self, position: tuple[float, float, float]) -> None:
        start = self._cube_qpos
        self._data.qpos[start : start + 7] = (*position, 1.0, 0.0, 0.0, 0.0)
        self._data.qvel[self._cube_velocity : self._cube_velocity + 6] = 0.0

    def ground_truth(self) -> GroundTruth:
        """Returns what a score needs to know of the present state."""
        state = self.instant()
        x, y, z = (float(value) for value in state.qpos[self._cube_qpos : self._cube_qpos + 3])
        across, along, up = np.abs(np.array((x, y, z)) - self.model.body("bin").pos)
        return GroundTruth(
            cube_position=(x, y, z),
            cube_in_bin=bool(across < BIN_HALF_WIDTH and along < BIN_HALF_WIDTH and up < BIN_RIM),
            joint_positions=named(state.joints),
        )


def named(joints: FloatArray) -> dict[str, float]:
    """Returns joint values, shape (6,), by joint name."""
    return {name: float(value) for name, value in zip(JOINTS, joints, strict=True)}


def ordered(joints: Mapping[str, float]) -> FloatArray:
    """Returns joint values in the order of `JOINTS`, shape (6,)."""
    return np.array([joints[name] for name in JOINTS], dtype=np.float64)
