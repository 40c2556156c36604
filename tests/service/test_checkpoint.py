"""Finding checkpoints and telling them apart, without LeRobot."""

import subprocess
import sys
from pathlib import Path

import pytest

from longarm_service import checkpoint
from longarm_wire.errors import Reason, WireError


def write(directory: Path, **files: bytes) -> Path:
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_bytes(content)
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        config__json=b'{"type": "act"}',
        policy_preprocessor__json=b'{"steps": []}',
        policy_postprocessor__json=b'{"steps": []}',
        model__safetensors=bytes(5 << 20),
    )


def test_finds_a_directory(directory: Path) -> None:
    found = checkpoint.find(str(directory), "", lambda _: None)
    assert (found.policy_type, found.directory, found.revision) == ("act", directory, "")


@pytest.mark.parametrize("position", [0, 1000, (1 << 20) - 1, -(1 << 20), -1])
def test_the_digest_sees_the_ends_of_the_weights(directory: Path, position: int) -> None:
    before = checkpoint.digest(directory)
    assert checkpoint.digest(directory) == before
    weights = bytearray(5 << 20)
    weights[position] = 1
    write(directory, model__safetensors=bytes(weights))
    assert checkpoint.digest(directory) != before


def test_the_digest_sees_configuration_and_length_and_no_other_file(directory: Path) -> None:
    before = checkpoint.digest(directory)
    write(directory, README__md=b"hello")
    assert checkpoint.digest(directory) == before
    write(directory, config__json=b'{"type": "act" }')
    changed = checkpoint.digest(directory)
    assert changed != before
    write(directory, model__safetensors=bytes((5 << 20) + 1))
    assert checkpoint.digest(directory) != changed


def test_a_small_file_is_read_once_and_whole(tmp_path: Path) -> None:
    digests = set()
    for size in (0, 1, 2):
        write(tmp_path, config__json=bytes(size))
        digests.add(checkpoint.digest(tmp_path))
    assert len(digests) == 3


def test_weights_that_may_not_be_read_are_not_called_missing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot saves weights with mode 600, so a policy mounted into a container is often another user's."""
    weights = directory / "model.safetensors"
    # Whoever runs the tests may be root, who may read everything
    monkeypatch.setattr("os.access", lambda path, _: path != weights)
    with pytest.raises(WireError, match=f"{weights}.*chmod -R a\\+rX {directory}$") as caught:
        checkpoint.find(str(directory), "", lambda _: None)
    assert caught.value.reason is Reason.POLICY_LOAD_FAILED


def test_the_hub_is_not_asked_for_what_cannot_be_there() -> None:
    with pytest.raises(WireError, match="no directory '/nowhere'") as caught:
        checkpoint.find("/nowhere", "", lambda _: None)
    assert caught.value.reason is Reason.POLICY_NOT_FOUND


CUT_SHORT = """
import os, sys
from longarm_service import checkpoint
with checkpoint.as_judged(checkpoint.find(sys.argv[1], "", lambda _: None)) as judged:
    print(os.getpid(), judged.read_from, flush=True)
    os._exit(1)
"""


def test_what_a_load_that_was_ended_leaves_behind_is_removed(directory: Path) -> None:
    """And with it nothing of the checkpoint, to which it leads."""
    command = [sys.executable, "-c", CUT_SHORT, str(directory)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    pid, place = said.split(maxsplit=1)
    left = Path(place.strip())
    assert (left / "model.safetensors").is_symlink()
    checkpoint.clear_up_after(int(pid))
    assert not left.exists()
    assert (directory / "model.safetensors").stat().st_size == 5 << 20
