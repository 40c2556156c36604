"""Policies with random weights that benches make to their options."""

import argparse
from pathlib import Path


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Adds what make_checkpoint reads, and the policy's device."""
    parser.add_argument("--policy", choices=("act", "smolvla"), default="act", help="made with random weights")
    parser.add_argument("--hidden-size", type=int, default=64, help="of SmolVLA; its own is 960")
    parser.add_argument("--layers", type=int, default=2, help="of SmolVLA; its own are 16")
    parser.add_argument("--image-size", type=int, default=64, help="of SmolVLA; its own is 512")
    parser.add_argument("--device", default="cpu", help="of the policy")


def make_checkpoint(options: argparse.Namespace, folder: Path) -> Path:
    """Makes the policy that options ask for within folder, and returns its directory."""
    if options.policy == "act":
        from lerobot_robot_longarm_sim.checkpoint import make_checkpoint as make_act

        return make_act(folder / "act")
    from bench.smolvla_checkpoint import make_smolvla

    return make_smolvla(
        folder / "smolvla",
        hidden_size=options.hidden_size,
        layers=options.layers,
        image_size=options.image_size,
    )
