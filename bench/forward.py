"""What bfloat16, compiling and batches do to a policy's forward pass, and what the service's wrapping adds to it.

usage: python -m bench.forward [--policy act|smolvla] [--device cpu] [--rounds 20]

The ways take turns, so that all of them see the same machine. Prints Markdown, and writes it to bench/results/NAME.md.
Compiling needs a C++ compiler on the CPU, and Triton on a GPU.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from bench.made_policy import add_policy_options, make_checkpoint
from bench.publish import publish
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.lerobot_policy import LerobotPolicy, LerobotProcessors
from longarm_service.policy import Observation, PolicyChoice

BATCH = 8
EAGER = "float32"


def prepared(policy: LerobotPolicy, processors: LerobotProcessors, number: int) -> Any:
    """Returns what the policy takes for one of many random observations."""
    random = np.random.default_rng(number)
    images = {
        key: processors.prepare_frame(key, random.integers(0, 256, (*size, 3), np.uint8))
        for key, size in policy.spec.cameras.items()
    }
    state = random.normal(0, 20, policy.spec.state_dim).astype(np.float32)
    return processors.preprocess(Observation(state, images, "pick the cube", ""))


def ways(checkpoint: Path, device: str) -> dict[str, Callable[[], np.ndarray]]:
    """Returns by name how a chunk is made: each call answers robot-space actions for the same observation.

    Loads and warms up; compiling takes minutes. The bare way is LeRobot's own call; the batch answers for BATCH.
    """
    found: dict[str, Callable[[], np.ndarray]] = {}
    for dtype in ("", "bfloat16"):
        for compiled in (False, True):
            loader = LerobotLoader(device, dtype, compiled)
            policy = loader.load(PolicyChoice(str(checkpoint)), lambda _: None)
            processors = policy.open_processors()
            batch = prepared(policy, processors, 0)
            several = [batch, *(prepared(policy, processors, number) for number in range(1, BATCH))]
            name = f"{dtype or EAGER}{', compiled' if compiled else ''}"
            if name == EAGER:
                found["LeRobot's own call"] = partial(answer, processors, partial(bare, policy, batch))
            found[name] = partial(answer, processors, partial(policy.predict, batch))
            if policy.takes_batches:
                found[f"{name}, batch of {BATCH}"] = partial(answer, processors, partial(first_of, policy, several))
    return found


def answer(processors: LerobotProcessors, predict: Callable[[], torch.Tensor]) -> np.ndarray:
    """Returns robot-space actions."""
    return processors.postprocess(predict())


def first_of(policy: LerobotPolicy, several: list[Any]) -> torch.Tensor:
    """Returns the first chunk of a batch."""
    return policy.predict_batch(several)[0]


def bare(policy: LerobotPolicy, batch: Any) -> torch.Tensor:
    """Returns the chunk as LeRobot's policy makes it, without anything of the service's."""
    with torch.inference_mode():
        chunk: torch.Tensor = policy.model._policy.predict_action_chunk(batch)
    if chunk.is_cuda:
        torch.cuda.synchronize()
    return chunk


def measured(found: dict[str, Callable[[], np.ndarray]], rounds: int) -> list[str]:
    """Returns the lines of the table."""
    taken: dict[str, list[float]] = {name: [] for name in found}
    answers: dict[str, np.ndarray] = {}
    for _ in range(rounds):
        for name, way in found.items():
            torch.manual_seed(0)  # policies that begin with noise
            begun = time.perf_counter()
            answers[name] = way()
            taken[name].append(1000 * (time.perf_counter() - begun))
    plain = float(np.median(taken[EAGER]))
    lines = [
        "| way | p50 / p95, ms | ms per chunk | times as fast | differs at most, deg |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, times in taken.items():
        p50, p95 = np.quantile(times, (0.5, 0.95))
        each = p50 / (BATCH if "batch" in name else 1)
        # In a batch the noise is another
        off = "" if "batch" in name else f"{np.abs(answers[name] - answers[EAGER]).max():.3f}"
        lines.append(f"| {name} | {p50:.1f} / {p95:.1f} | {each:.1f} | {plain / each:.2f} | {off} |")
    return lines


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_policy_options(parser)
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--rounds", type=int, default=20, help="how often each way is timed")
    parser.add_argument("--name", default="forward", help="of the file in bench/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = f"the CPU, torch on {options.threads} thread{'s' * (options.threads > 1)}"
    if options.device.startswith("cuda"):
        where = torch.cuda.get_device_name(options.device)
    with tempfile.TemporaryDirectory(prefix="longarm-bench-") as folder:
        checkpoint = make_checkpoint(options, Path(folder) / "policy")
        lines = measured(ways(checkpoint, options.device), options.rounds)
    sizes = f" ({options.hidden_size} wide, {options.layers} layers, images of {options.image_size})"
    text = "\n".join(
        [
            "# A policy's forward pass",
            "",
            "Made by `python -m bench.forward`. Do not edit.",
            "",
            f"{options.policy}{sizes if options.policy == 'smolvla' else ''}, random weights, on {where}, with its",
            f"postprocessor; {options.rounds} rounds in which the ways take turns. Times as fast: per chunk, against",
            f"{EAGER}.",
            "",
            *lines,
            "",
        ]
    )
    publish(options.name, text)


if __name__ == "__main__":
    main()
