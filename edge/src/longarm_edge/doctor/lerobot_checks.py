"""Checks of the robot itself: its port, its calibration, its cameras."""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lerobot.robots import Robot as LeRobot

from longarm_edge.doctor.findings import Finding, Verdict
from longarm_edge.lerobot_robot import LeRobotRobot

# How long frames are counted
CAMERA_SECONDS = 1.5
# A camera that gives less than this share of the rate it was configured for is slow
SLOW_CAMERA = 0.9


def check_port(config: Any) -> Finding:
    """Returns whether the robot's serial port is there and may be opened."""
    port = getattr(config, "port", None)
    if not isinstance(port, str) or not port.startswith("/"):
        return Finding("serial port", Verdict.SKIPPED, f"a {config.type} has none")
    path = Path(port)
    if not path.exists():
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("tty[AU][CS][MB]*"))) or "none"
        return Finding(
            "serial port",
            Verdict.FAILED,
            f"{port} is not there. Ports that look like a robot's: {there}",
            "Plug the robot in and switch it on; lerobot-find-port tells which port is its own",
        )
    if not stat.S_ISCHR(path.stat().st_mode):
        return Finding("serial port", Verdict.FAILED, f"{port} is no device", "Set --robot.port to the robot's port")
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding(
            "serial port",
            Verdict.FAILED,
            f"{port} may not be opened by this user",
            "sudo usermod -aG dialout $USER, then log in again",
        )
    return Finding("serial port", Verdict.OK, port)


def check_calibration(arm: LeRobot) -> Finding:
    """Returns whether there is a calibration of arm, or it needs none. It need not be connected."""
    if arm.calibration_fpath.is_file():
        return Finding("calibration", Verdict.OK, str(arm.calibration_fpath))
    with contextlib.suppress(Exception):
        if arm.is_calibrated:
            return Finding("calibration", Verdict.OK, f"a {arm.config.type} needs none")
    return Finding(
        "calibration",
        Verdict.FAILED,
        f"no file {arm.calibration_fpath}",
        "Run lerobot-calibrate with the same --robot.… flags",
    )


def check_cameras(robot: LeRobotRobot) -> Iterator[Finding]:
    """Yields what each camera really gives. The robot must be connected."""
    cameras = getattr(robot.lerobot, "cameras", None)
    if not isinstance(cameras, dict) or not all(hasattr(camera, "async_read") for camera in cameras.values()):
        names = ", ".join(f"{c.name} {c.width}x{c.height}" for c in robot.spec.cameras) or "none"
        yield Finding("cameras", Verdict.SKIPPED, f"{names}; a {robot.spec.robot_type} reads them by itself")
        return
    for name, camera in cameras.items():
        yield _camera(name, camera)


def _camera(name: str, camera: Any) -> Finding:
    frames, deadline = 0, time.monotonic() + CAMERA_SECONDS
    try:
        while time.monotonic() < deadline:
            frame = camera.async_read()
            frames += 1
    except Exception as error:  # noqa: BLE001  # whatever a camera raises is what there is to say of it
        return Finding(
            f"camera {name}", Verdict.FAILED, str(error), "lerobot-find-cameras tells which cameras there are"
        )
    rate = frames / CAMERA_SECONDS
    found = f"{frame.shape[1]}x{frame.shape[0]} at {rate:.0f} frames/s"
    if camera.fps and rate < SLOW_CAMERA * camera.fps:
        return Finding(
            f"camera {name}",
            Verdict.WARNING,
            f"{found}, {camera.fps} were asked for",
            "More light (long exposures slow cameras down), fourcc MJPG, or another USB port",
        )
    return Finding(f"camera {name}", Verdict.OK, found)
