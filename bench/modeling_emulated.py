"""The bench's policy: takes a fixed time, and answers a smooth plan that says which observation it is for."""

import time

import numpy as np
import torch
from lerobot.policies.act.modeling_act import ACTPolicy

from bench import marks
from bench.configuration_emulated import EmulatedConfig
from bench.robot_log import JOINT_COUNT

FPS = 30.0
RADIUS = 20.0
SECONDS_PER_ROUND = 5.0
# A plan starts where the arm is and comes back to its path within some steps
STEPS_TO_RETURN = 10.0
# How far off a plan is after 50 steps, degrees: the older a plan, the worse, and each in a way of its own
DRIFT = 10.0


class EmulatedPolicy(ACTPolicy):  # type: ignore[misc]  # LeRobot is untyped to us
    """Loads and behaves as any LeRobot policy does; only what it answers is made up."""

    config_class = EmulatedConfig
    name = "longarm_bench"

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def predict_action_chunk(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns plans of shape (batch, chunk_size, joints and marks), not normalised."""
        begun = time.monotonic()
        if not self.config.inference_seconds:
            super().predict_action_chunk(batch)
        states = batch["observation.state"].cpu().numpy()
        plans = torch.from_numpy(np.stack([plan(state, self.config.chunk_size) for state in states]))
        time.sleep(max(0.0, self.config.inference_seconds - (time.monotonic() - begun)))
        return plans.to(batch["observation.state"].device)


def plan(state: np.ndarray, steps: int) -> np.ndarray:
    """Returns what to do from state on: around a circle in two joints, the others swinging with it.

    Args:
      state: float32 of shape (JOINT_COUNT + 1,): joints in degrees, and the observation's count as marks.to_state.
      steps: How many actions.

    Returns:
      float32 of shape (steps, JOINT_COUNT + marks.DIGITS). The first action follows the observed pose by one tick.
    """
    joints, count = state[:JOINT_COUNT], marks.from_state(float(state[JOINT_COUNT]))
    phase = np.arctan2(joints[1], joints[0])
    after = np.arange(1, steps + 1)[:, None]
    path = path_at(phase + 2 * np.pi * after / (FPS * SECONDS_PER_ROUND))
    back = (joints - path_at(np.array([[phase]]))) * np.exp(-after / STEPS_TO_RETURN)
    way = np.random.default_rng(count).uniform(-1, 1, JOINT_COUNT)
    actions = path + back + DRIFT * way * after / 50
    return np.hstack([actions, np.tile(marks.to_digits(count), (steps, 1))]).astype(np.float32)


def path_at(phases: np.ndarray) -> np.ndarray:
    """Returns the pose at phases of shape (n, 1), degrees, shape (n, JOINT_COUNT)."""
    circle = [RADIUS * np.cos(phases), RADIUS * np.sin(phases)]
    return np.hstack([*circle, *(RADIUS / 2 * np.sin(phases + joint) for joint in range(2, JOINT_COUNT))])
