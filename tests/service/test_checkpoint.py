"""Finding checkpoints and telling them apart, without LeRobot."""

import socket
from pathlib import Path

import pytest

from longarm.policy.v1 import policy_service_pb2 as pb
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


def test_a_name_that_is_not_in_the_cache_offline_is_not_found() -> None:
    news: list[pb.Progress] = []
    with pytest.raises(WireError, match="HF_HUB_OFFLINE") as caught:
        checkpoint.find("nobody/nothing", "v1", news.append)
    assert caught.value.reason is Reason.POLICY_NOT_FOUND
    assert "'v1'" in caught.value.message
    assert [progress.stage for progress in news] == [pb.PROGRESS_STAGE_FETCHING]


def test_a_hub_that_does_not_answer_may_do_so_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service that starts with its machine may be there before the network is."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    for name in ("constants.ENDPOINT", "hf_api.ENDPOINT"):
        monkeypatch.setattr(f"huggingface_hub.{name}", f"http://127.0.0.1:{port}", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", f"http://127.0.0.1:{port}")
    with pytest.raises(WireError, match="does not answer") as caught:
        checkpoint.find("nobody/nothing", "", lambda _: None)
    assert caught.value.reason is Reason.HUB_UNREACHABLE


def test_the_share_of_bytes_that_came_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    news: list[pb.Progress] = []
    bar = checkpoint._reporting_bar("lab/act", news.append)
    with bar(total=0, unit="B", unit_scale=True, desc="Reconstructing") as reconstructed:
        reconstructed.total = 4_000_000
        reconstructed.update(1_000_000)
        reconstructed.update(3_000_000)
    with bar(total=10, unit="B", desc="Downloading bytes") as transferred:
        transferred.update(5)
    assert list(bar(range(3), total=3, desc="Fetching 3 files")) == [0, 1, 2]
    assert [progress.fraction for progress in news] == [0.25, 1.0]
    assert news[0].message == "Fetching lab/act: 1 of 4 MB"
    assert capsys.readouterr().err == ""
