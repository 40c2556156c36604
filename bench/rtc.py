"""What real-time chunking does to the step where chunks meet. Prints Markdown, and writes it to bench/results/rtc.md.

usage: python -m bench.rtc [--seconds 60] [--inference_ms 100]

Time is counted in ticks and nothing is waited for, so the numbers are the same on every machine. The action queue, the
prefix, the processors and the guidance are Longarm's and LeRobot's own; the network of a small SmolVLA is replaced by
the exact flow of a policy that is of two minds: from where the arm stands it may go round to the left or to the right,
both smoothly, and each chunk decides anew.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from lerobot.policies.common.flow_matching import euler_integrate

from bench.publish import publish
from bench.smolvla_checkpoint import JOINTS, make_smolvla
from longarm_edge.action_queue import ActionChunk, ActionQueue
from longarm_edge.merging import LEROBOT_MERGES, Merge, fade, latest_only
from longarm_edge.rtc import RealTimeChunking
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.lerobot_policy import LerobotPolicy
from longarm_service.policy import Guidance, Observation, PolicyChoice
from longarm_wire.rtc import RtcConfig

FPS = 30
CHUNK = 50
RTTS_MS = (0, 40, 120, 300)
MERGES: dict[str, Merge] = {
    "latest_only": latest_only,
    "weighted_average": LEROBOT_MERGES["weighted_average"],
    "fade": fade(0.1 * FPS),
    "rtc": latest_only,
}
# How far the two ways lie apart at most, and how far each chunk leads on, in normalised units of 20 degrees
SWING, ADVANCE = 0.75, 1.5


def of_two_minds(model: Any) -> Callable[..., torch.Tensor]:
    """Returns what takes the place of the model's sample_actions: an even mixture of two trajectories."""
    progress = torch.arange(1, CHUNK + 1) / CHUNK
    ways = torch.stack([ADVANCE * progress + side * SWING * torch.sin(math.pi * progress) for side in (-1, 1)])

    def sample(*inputs: Any, **rtc: Any) -> torch.Tensor:
        state = inputs[4]  # after images, their masks, tokens and theirs
        rtc["noise"] = model.sample_noise((len(state), CHUNK, model.config.max_action_dim), state.device)
        modes = state[:, None, None, :] + ways[None, :, :, None]

        def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            t = time[:, None, None]
            spread = t**2 + ((1 - t) * 0.02) ** 2
            distance = ((x[:, None] - (1 - t)[:, None] * modes) ** 2).sum((2, 3))
            share = torch.softmax(-distance / (2 * spread[:, 0]), dim=1)
            return (x - (share[:, :, None, None] * modes).sum(1)) / t

        return euler_integrate(
            velocity, num_steps=10, rtc_processor=model.rtc_processor, rtc_enabled=model._rtc_enabled(), **rtc
        )

    return sample


def load(directory: Path) -> LerobotPolicy:
    """Makes the policy in directory, where it must stay, and loads it."""
    make_smolvla(directory, chunk_size=CHUNK, height=32, width=32, cameras=("front",), image_size=32)
    policy = LerobotLoader("cpu").load(PolicyChoice(str(directory)), lambda _: None)
    policy.model._policy.model.sample_actions = of_two_minds(policy.model._policy.model)
    return policy


def steps_at_switches(
    policy: LerobotPolicy, aggregate: str, delay: int, horizon: int, ticks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Runs an arm that goes where it is sent. Returns its steps per tick in degrees, at chunk switches and between.

    A step is that of the joint that moves most. A chunk is asked for when the queue has no more than horizon actions or
    twice the delay left, and arrives delay ticks later.
    """
    torch.manual_seed(0)
    config = RtcConfig(execution_horizon=horizon)
    queue = ActionQueue(1e9, MERGES[aggregate])
    rtc = RealTimeChunking(config, FPS)
    processors = policy.open_processors()
    black = {
        key: processors.prepare_frame(key, np.zeros((*size, 3), np.uint8)) for key, size in policy.spec.cameras.items()
    }
    pose = np.zeros(len(JOINTS), np.float32)
    at_switch: list[float] = []
    between: list[float] = []
    in_flight: tuple[int, ActionChunk] | None = None
    sequence = last_sequence = 0
    for tick in range(ticks):
        if in_flight is not None and tick >= in_flight[0]:
            queue.merge(in_flight[1], 0.0)
            in_flight = None
        if in_flight is None and queue.depth() <= max(horizon, 2 * delay):
            outlook = queue.outlook()
            prefix = rtc.prefix(outlook.coming, delay / FPS - 1e-6)
            prepared = processors.preprocess(Observation(pose, black, "", ""))
            guidance = None
            if aggregate == "rtc":
                guidance = Guidance(config)
                if prefix is not None:
                    guidance = Guidance(config, prefix.delay_ticks, processors.anchored(prefix))
            sequence += 1
            chunk = policy.predict(prepared, guidance)
            model_actions = processors.in_model_space(chunk)
            actions = processors.postprocess(chunk)
            # The arm does not move before its first chunk is there
            arrives = tick + (delay if sequence > 1 else 0)
            in_flight = arrives, ActionChunk(0, 0, sequence, outlook.step, 0.0, actions, model_actions)
            if arrives == tick:
                queue.merge(in_flight[1], 0.0)
                in_flight = None
        action, _ = queue.take(0.0)
        if action is None:
            continue
        step = float(np.abs(action.values - pose).max())
        if tick:
            (at_switch if action.sequence != last_sequence else between).append(step)
        pose, last_sequence = action.values, action.sequence
    return np.array(at_switch), np.array(between)


def table(policy: LerobotPolicy, seconds: float, inference_ms: float) -> list[str]:
    """Returns the lines of the table."""
    lines = [
        "| RTT ms | delay, ticks | horizon | merge | switches | step, deg: p50 / p95 / max | between: p95 / max |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rtt in RTTS_MS:
        delay = math.ceil((rtt + inference_ms) / 1000 * FPS)
        horizon = max(10, 2 * delay)
        for aggregate in MERGES:
            at, between = steps_at_switches(policy, aggregate, delay, horizon, round(seconds * FPS))
            p50, p95 = np.quantile(at, (0.5, 0.95))
            lines.append(
                f"| {rtt} | {delay} | {horizon} | {aggregate} | {len(at)} | {p50:.1f} / {p95:.1f} / {at.max():.1f} | "
                f"{np.quantile(between, 0.95):.1f} / {between.max():.1f} |"
            )
    return lines


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of emulated time per row")
    parser.add_argument("--inference_ms", type=float, default=100.0, help="time of one prediction")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = table(load(Path(folder)), options.seconds, options.inference_ms)
    text = "\n".join(
        [
            "# The step where chunks meet",
            "",
            "Made by `python -m bench.rtc`. Do not edit.",
            "",
            "A policy that may go round to the left or to the right and decides anew with each chunk,",
            f"{options.inference_ms:g} ms a prediction, {FPS} ticks a second. Time is counted in ticks: the",
            "numbers are the same on every machine. Step: of the joint that moves most from one tick to the",
            "next, where the chunk changes and between.",
            "",
            *lines,
            "",
        ]
    )
    publish("rtc", text)


if __name__ == "__main__":
    main()
