"""Feetech servos at the far end of a pseudo-terminal: they speak the bus's protocol and remember what was written.

LeRobot's own driver talks to them as to real ones.
"""

import json
import os
import select
import threading
import tty
from pathlib import Path
from types import TracebackType
from typing import Self

# Of the sts3215: where its registers are, and what its number is
MODEL, TORQUE, GOAL, POSITION = 3, 40, 42, 56
MIN_LIMIT, MAX_LIMIT = 9, 11
STS3215 = 777
OVERLOAD = 32
PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 1, 2, 3, 0x82, 0x83


class Servos:
    """The six servos of an SO-101. Use as a context manager.

    Attributes:
      port: What the driver opens.
      writes: What was written, as (servo, address, bytes), in order.
      overloaded: Servos that say so whenever they are written to.
      blocked: Servos that do not move.
      silent: Whether the bus loses what it is told, and answers nothing.
    """

    def __init__(self, *, torque: bool) -> None:
        """Makes servos in the middle of their range, found with torque or without."""
        self._controller, self._line = os.openpty()
        for end in (self._controller, self._line):
            tty.setraw(end)
        self.port = os.ttyname(self._line)
        self.writes: list[tuple[int, int, bytes]] = []
        self.overloaded: set[int] = set()
        self.blocked: set[int] = set()
        self.silent = False
        self._registers = {servo: bytearray(256) for servo in range(1, 7)}
        for registers in self._registers.values():
            for address, value in ((MODEL, STS3215), (MIN_LIMIT, 0), (MAX_LIMIT, 4095), (POSITION, 2048)):
                registers[address : address + 2] = value.to_bytes(2, "little")
            registers[TORQUE] = torque
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="servos")

    def settings(self, directory: Path, name: str = "mine") -> dict[str, str]:
        """Returns LeRobot's settings of an arm with these servos, whose calibration is in directory."""
        joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
        whole = {"drive_mode": 0, "homing_offset": 0, "range_min": 0, "range_max": 4095}
        calibration = {joint: {"id": servo, **whole} for joint, servo in zip(joints, self._registers, strict=True)}
        (directory / f"{name}.json").write_text(json.dumps(calibration))
        return {"port": self.port, "id": name, "calibration_dir": str(directory)}

    @property
    def positions(self) -> list[int]:
        """Where the servos stand, in their steps of 4096 a turn."""
        return [int.from_bytes(registers[POSITION : POSITION + 2], "little") for registers in self._registers.values()]

    @property
    def torque(self) -> set[bool]:
        """Whether the motors hold now: one value if all are alike."""
        return {bool(registers[TORQUE]) for registers in self._registers.values()}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._controller)
        os.close(self._line)

    def _serve(self) -> None:
        received = b""
        while not self._over.is_set():
            if select.select([self._controller], [], [], 0.02)[0]:
                received += os.read(self._controller, 4096)
            while len(received) >= 4 and len(received) >= 4 + received[3]:
                end = 4 + received[3]  # two bytes of header, the servo, the length of what follows
                servo, instruction, parameters = received[2], received[4], received[5 : end - 1]
                received = received[end:]
                os.write(self._controller, self._answer(servo, instruction, parameters))

    def _answer(self, servo: int, instruction: int, parameters: bytes) -> bytes:
        if self.silent:
            return b""
        if instruction == SYNC_READ:
            address, length, *servos = parameters
            return b"".join(self._status(s, self._registers[s][address : address + length]) for s in servos)
        if instruction == SYNC_WRITE:
            address, length = parameters[:2]
            for start in range(2, len(parameters), length + 1):
                self._write(parameters[start], address, parameters[start + 1 : start + 1 + length])
            return b""  # nobody answers what is said to all
        if servo not in self._registers:
            return b""
        if instruction == READ:
            address, length = parameters
            return self._status(servo, self._registers[servo][address : address + length])
        if instruction == WRITE:
            self._write(servo, parameters[0], parameters[1:])
        return self._status(servo, b"", OVERLOAD if servo in self.overloaded else 0)

    def _write(self, servo: int, address: int, values: bytes) -> None:
        self.writes.append((servo, address, values))
        registers = self._registers[servo]
        registers[address : address + len(values)] = values
        if address == GOAL and registers[TORQUE] and servo not in self.blocked:
            registers[POSITION : POSITION + 2] = registers[GOAL : GOAL + 2]

    @staticmethod
    def _status(servo: int, values: bytes, error: int = 0) -> bytes:
        body = bytes([servo, len(values) + 2, error]) + values
        return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])
