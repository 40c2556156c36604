"""What several folders of tests need."""

import os
from pathlib import Path

import pytest

# Before anything imports the hub's library, which reads it once
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def smolvla_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SmolVLA with random weights, saved as LeRobot saves: six joints, two cameras of 48x64, chunks of 20."""
    from bench.smolvla_checkpoint import make_smolvla

    return make_smolvla(
        tmp_path_factory.mktemp("smolvla"), chunk_size=20, height=48, width=64, image_size=32, denoising_steps=5
    )
