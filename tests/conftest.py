"""What several folders of tests need."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports the hub's library, which reads it once
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure() -> None:
    """Listens to signals that tests send, also where they run in the background or under nohup."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def smolvla_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SmolVLA with random weights, saved as LeRobot saves: six joints, two cameras of 48x64, chunks of 20."""
    from bench.smolvla_checkpoint import make_smolvla

    return make_smolvla(
        tmp_path_factory.mktemp("smolvla"), chunk_size=20, height=48, width=64, image_size=32, denoising_steps=5
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"there is no mount here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    # Lazily: a writer that is being ended may still have files open
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_up(disk: Path) -> None:
    """Leaves no byte free on disk."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(1 << 16))
        except OSError:
            return


def read_until(descriptor: int, words: str) -> str:
    """Returns what comes from descriptor, a terminal's, up to words and a little more."""
    text = ""
    deadline = time.monotonic() + 20
    while words not in text:
        ready, _, _ = select.select([descriptor], [], [], deadline - time.monotonic())
        assert ready, f"Expected {words!r}, found {text!r}"
        try:
            text += os.read(descriptor, 4096).decode()
        except OSError as error:  # whoever writes has ended
            raise AssertionError(f"Expected {words!r}, found {text!r}") from error
    return text
