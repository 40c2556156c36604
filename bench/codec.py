"""What frames cost on their way, and what that does to them. Prints Markdown, and writes it to bench/results/codec.md.

usage: python -m bench.codec [--frames 12] [--work out/bench]

The policy is a real ACT with random weights, smoothed and scaled to modest motion by lerobot_robot_longarm_sim: the
same network and processors as a trained one, so that errors of its input spread as they would, but not a trained
policy's sensitivity. Two yardsticks stand beside: what a sensor's noise does to the same actions, and what the next
frame does.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.common.vla_utils import resize_with_pad
from lerobot.policies.factory import make_pre_post_processors
from PIL import Image
from torchvision.io import encode_jpeg

from bench.arm import CAMERAS
from bench.checkpoint import HEIGHT, WIDTH, make_film
from bench.publish import publish
from lerobot_robot_longarm_sim.checkpoint import make_checkpoint
from lerobot_robot_longarm_sim.joints import HOME, JOINTS
from longarm_edge.frames import pack_frame
from longarm_wire import images
from longarm_wire.frame_sizes import Size, size_to_send
from longarm_wire.images import DEFAULT_JPEG_QUALITY
from longarm_wire.specs import CameraSpec

QUALITIES = (75, 85, 90, 95)
REPEATS = 30
# Into which policies scale their frames, with their usual settings
BOXES: dict[str, Size | None] = {
    "none: act, diffusion and more": None,
    "512x512: smolvla": (512, 512),
    "224x224: pi0, pi05, pi0_fast": (224, 224),
}
# Standard deviation of a webcam's noise in daylight, of 255
SENSOR_NOISE = 2.0

Encoder = Callable[[np.ndarray, int], bytes]


def by_opencv(frame: np.ndarray, quality: int) -> bytes:
    """As longarm_wire.images does."""
    return images.encode(frame, images.Codec.JPEG, quality=quality)


def by_opencv_444(frame: np.ndarray, quality: int) -> bytes:
    """With colour in full resolution, four times as much of it as usual."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode(".jpeg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def by_pillow(frame: np.ndarray, quality: int) -> bytes:
    """With Pillow's own defaults, 4:2:0 as OpenCV's."""
    sink = io.BytesIO()
    Image.fromarray(frame).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def by_torchvision(frame: np.ndarray, quality: int) -> bytes:
    """From rows of pixels, which are copied to planes on the way."""
    data: np.ndarray = encode_jpeg(torch.tensor(frame).permute(2, 0, 1).contiguous(), quality=quality).numpy()
    return data.tobytes()


ENCODERS: dict[str, Encoder] = {
    "OpenCV": by_opencv,
    "OpenCV 4:4:4": by_opencv_444,
    "Pillow": by_pillow,
    "torchvision": by_torchvision,
}


def scaled(frame: np.ndarray, size: Size) -> np.ndarray:
    """Returns frame in a size to send, as the edge does it."""
    raw = pack_frame(CameraSpec("", *size), frame, images.Codec.RAW, DEFAULT_JPEG_QUALITY).data
    return images.decode(raw, images.Codec.RAW, *size)


def through_jpeg(frames: np.ndarray, encode: Encoder, quality: int) -> np.ndarray:
    """Returns what is left of frames, of shape (cameras, height, width, 3)."""
    decoded = [images.decode(encode(frame, quality), images.Codec.JPEG, *frame.shape[:2]) for frame in frames]
    return np.stack(decoded)


def psnr(frame: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal to noise ratio in dB."""
    error = np.mean((frame.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def encoders_table(film: np.ndarray) -> list[str]:
    """Returns a table of encoders: milliseconds and kilobytes per frame.

    Args:
      film: uint8 of shape (n, cameras, HEIGHT, WIDTH, 3).
    """
    sizes = [size_to_send((HEIGHT, WIDTH), box) for box in BOXES.values()]
    lines = [
        f"| encoder | quality | {' | '.join(f'{w}x{h}: ms | kB' for h, w in sizes)} | PSNR of the first, dB |",
        f"| --- | ---: |{' ---: | ---: |' * len(sizes)} ---: |",
    ]
    whole = np.ascontiguousarray(film[0, 0])
    for name, encode in ENCODERS.items():
        for quality in QUALITIES:
            shown = [timed(encode, scaled(whole, size), quality) for size in sizes]
            decoded = images.decode(encode(whole, quality), images.Codec.JPEG, HEIGHT, WIDTH)
            cells = " | ".join(f"{value:.2f} | {size:.1f}" for value, size in shown)
            lines.append(f"| {name} | {quality} | {cells} | {psnr(whole, decoded):.1f} |")
    return lines


def sizes_table(film: np.ndarray) -> list[str]:
    """Returns a table of what frames are scaled to before they travel, and how far that is from the policy's own doing.

    Args:
      film: uint8 of shape (n, cameras, HEIGHT, WIDTH, 3).
    """
    lines = [
        "| the policy's box | sent | kB of two frames | RMS of 255 | max of 255 |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, box in BOXES.items():
        size = size_to_send((HEIGHT, WIDTH), box)
        sent = [scaled(frame, size) for frames in film for frame in frames]
        packed = [
            pack_frame(CameraSpec("", *size), f, images.Codec.JPEG, DEFAULT_JPEG_QUALITY) for fs in film for f in fs
        ]
        kilobytes = 2 * statistics.mean(len(frame.data) for frame in packed) / 1000
        differs = " | "
        if box is not None:
            seen = [padded(frame, box) for frames in film for frame in frames]
            apart = np.stack([padded(frame, box) for frame in sent]) - np.stack(seen)
            differs = f"{np.sqrt(np.mean(apart**2)):.2f} | {np.abs(apart).max():.2f}"
        lines.append(f"| {name} | {size[1]}x{size[0]} | {kilobytes:.0f} | {differs} |")
    return lines


def padded(frame: np.ndarray, box: Size) -> np.ndarray:
    """Returns what LeRobot makes of frame for a policy with a box, float32 of shape (3, *box), in [0, 255]."""
    pixels = torch.tensor(frame).permute(2, 0, 1)[None].float()
    picture: np.ndarray = resize_with_pad(pixels, *box, pad_value=0)[0].numpy()
    return picture


def timed(encode: Encoder, frame: np.ndarray, quality: int) -> tuple[float, float]:
    """Returns the median milliseconds of encoding frame, and its kilobytes."""
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        data = encode(frame, quality)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1000, len(data) / 1000


class Policy:
    """A real ACT from images in its own size to robot-space actions."""

    def __init__(self, directory: Path) -> None:
        """Loads it."""
        self._policy = ACTPolicy.from_pretrained(directory)
        self._pre, self._post = make_pre_post_processors(self._policy.config, pretrained_path=str(directory))

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Returns actions of shape (steps, joints), for frames of shape (cameras, height, width, 3) at home pose."""
        observation: dict[str, torch.Tensor] = {
            "observation.state": torch.tensor([[HOME[joint] for joint in JOINTS]], dtype=torch.float32)
        }
        for camera, frame in zip(CAMERAS, frames, strict=True):
            pixels = torch.tensor(frame).permute(2, 0, 1)[None]
            observation[f"observation.images.{camera}"] = pixels.float() / 255
        with torch.inference_mode():
            actions: np.ndarray = self._post(self._policy.predict_action_chunk(self._pre(observation)))[0].numpy()
        return actions


def actions_table(policy: Policy, film: np.ndarray) -> list[str]:
    """Returns a table of what happens to actions: root mean square, 99th percentile and largest change in robot units.

    Args:
      policy: Gives them.
      film: uint8 of shape (n, cameras, HEIGHT, WIDTH, 3).
    """
    noise = np.random.default_rng(1)
    raw = np.stack([policy(frames) for frames in film])
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        f"JPEG {quality}{name.removeprefix('OpenCV')}": partial(through_jpeg, encode=encode, quality=quality)
        for name, encode in ENCODERS.items()
        if name.startswith("OpenCV")
        for quality in QUALITIES
    }
    changes[f"noise of a sensor (sd {SENSOR_NOISE:g} of 255)"] = lambda frames: (
        (frames + noise.normal(0, SENSOR_NOISE, frames.shape)).round().clip(0, 255).astype(np.uint8)
    )
    lines = [
        "| frames | RMS, deg | p99, deg | max, deg | PSNR, dB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, change in changes.items():
        changed = np.stack([change(frames) for frames in film])
        difference = np.abs(np.stack([policy(frames) for frames in changed]) - raw)
        lines.append(f"| {name} | {spread(difference)} | {psnr(film, changed):.1f} |")
    lines.append(f"| the next frame, {1000 / 30:.0f} ms later | {spread(np.abs(np.diff(raw, axis=0)))} | |")
    lines.append(f"| any other frame of the film | {spread(np.abs(raw[::-1] - raw))} | |")
    return lines


def spread(difference: np.ndarray) -> str:
    """Returns root mean square, 99th percentile and maximum as cells."""
    found = (np.sqrt(np.mean(difference**2)), np.quantile(difference, 0.99), difference.max())
    return " | ".join(f"{value:.3f}" for value in found)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=12, help="consecutive frames of the film to compare actions on")
    parser.add_argument("--work", type=Path, default=Path("out/bench"), help="folder of checkpoint and film")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    film = np.load(make_film(options.work / "film.npy"), mmap_mode="r")[: options.frames]
    policy = Policy(make_checkpoint(options.work / f"act-of-the-sim-{WIDTH}x{HEIGHT}", height=HEIGHT, width=WIDTH))
    text = "\n".join(
        [
            "# What frames cost on their way, and what it does to actions",
            "",
            "Made by `python -m bench.codec`. Do not edit.",
            "",
            "## Encoders",
            "",
            "One thread, median of one frame of the simulated arm with a sensor's noise on it.",
            "",
            *encoders_table(film),
            "",
            "## Sizes",
            "",
            "Frames travel whole, or scaled as the policy would scale them, its box padded there. A frame of bytes is",
            "rounded where the policy's own is not: how far the picture in its box is from that of whole frames.",
            "",
            *sizes_table(film),
            "",
            "## Actions",
            "",
            f"A real ACT (ResNet-18, input {WIDTH}x{HEIGHT}, chunks of 50, random weights scaled to modest motion)",
            f"on {len(film)} consecutive frames: how far its actions are from those on the same frames, not",
            "compressed. Degrees; the gripper in its own units.",
            "",
            *actions_table(policy, np.asarray(film)),
            "",
        ]
    )
    publish("codec", text)


if __name__ == "__main__":
    main()
