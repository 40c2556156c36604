"""Checkpoints from a model hub: what is asked for, in which order, what is refused, and when it ends."""

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.service.conftest import Serve
from tests.service.fake_hub import COMMIT, Hub, go_online
from tests.service.fakes import PATIENCE_SECONDS, FakeLoader, open_session, opening
from tests.service.far_policies import FACTORY, FETCHING, FetchingLoader
from tests.service.test_processes import await_that, is_gone

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import checkpoint, shelf
from longarm_service.checkpoint import Checkpoint
from longarm_service.policy import LoadAbandonedError, Report
from longarm_service.process_loader import ProcessLoader
from longarm_wire.errors import Reason, WireError

ACT = {
    "config.json": b'{"type": "act"}',
    "policy_preprocessor.json": b'{"steps": []}',
    "policy_postprocessor.json": b'{"steps": []}',
    "policy_preprocessor_step_0_normalizer_processor.safetensors": bytes(10),
    "model.safetensors": bytes(3_000_000),
    "train_config.json": b"{}",
    "README.md": b"# hello",
    "pytorch_model.bin": b"a pickle",
    "optimizer.pt": b"a pickle",
    "training_state/optimizer_state.safetensors": b"moments",
    "checkpoints/000100/config.json": b"{}",
    "modeling_act.py": b"raise SystemExit",
}
TELLING = {"config.json", "policy_preprocessor.json", "policy_postprocessor.json"}


@pytest.fixture(autouse=True)
def act(hub: Hub) -> None:
    hub.models["lab/act"] = dict(ACT)


def find(name: str, revision: str = "", report: Report = lambda _: None) -> Checkpoint:
    return checkpoint.find(name, revision, report)


def refused(name: str, reason: Reason, *words: str, revision: str = "") -> None:
    with pytest.raises(WireError) as caught:
        find(name, revision)
    assert caught.value.reason is reason, caught.value
    for word in (name, *words):
        assert word in caught.value.message


def test_brings_what_a_policy_needs_and_nothing_else(hub: Hub) -> None:
    news: list[pb.Progress] = []
    found = find("lab/act", report=news.append)
    assert (found.policy_type, found.revision, found.exact_name) == ("act", COMMIT, f"lab/act@{COMMIT}")
    assert (found.directory / "model.safetensors").read_bytes() == ACT["model.safetensors"]
    assert set(hub.asked[:3]) == TELLING
    assert sorted(hub.asked) == sorted(
        [
            *TELLING,
            "train_config.json",
            "model.safetensors",
            "policy_preprocessor_step_0_normalizer_processor.safetensors",
        ]
    )
    assert {progress.stage for progress in news} <= {pb.PROGRESS_STAGE_FETCHING}


def test_what_is_there_is_not_fetched_again(hub: Hub) -> None:
    find("lab/act")
    hub.asked.clear()
    assert find("lab/act").revision == COMMIT
    assert find("lab/act", COMMIT).revision == COMMIT
    assert hub.asked == []


def test_a_hub_that_is_gone_is_not_missed_once_all_is_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    find("lab/act")
    monkeypatch.setenv("HF_ENDPOINT", closed_address())
    assert find("lab/act").revision == COMMIT
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find("lab/act").revision == COMMIT


@pytest.mark.parametrize(
    ("file", "content", "reason", "words"),
    [
        # What a large language model has
        ("config.json", b'{"model_type": "llama"}', Reason.POLICY_UNSUPPORTED, "no LeRobot policy"),
        ("config.json", None, Reason.POLICY_LOAD_FAILED, "no config.json"),
        ("config.json", b"\x80\x04", Reason.POLICY_LOAD_FAILED, "broken config.json"),
        ("policy_postprocessor.json", None, Reason.POLICY_LOAD_FAILED, "no policy_postprocessor.json"),
    ],
)
def test_weights_of_what_is_no_policy_are_not_fetched(
    hub: Hub, file: str, content: bytes | None, reason: Reason, words: str
) -> None:
    """A mistyped name may be one of hundreds of gigabytes."""
    del hub.models["lab/act"][file]
    if content is not None:
        hub.models["lab/act"][file] = content
    refused("lab/act", reason, words)
    assert set(hub.asked) <= TELLING


def test_weights_are_not_fetched_of_what_the_service_refuses(hub: Hub) -> None:
    def judge(found: Checkpoint) -> None:
        raise WireError(Reason.POLICY_UNSUPPORTED, f"Not {found.name}")

    with pytest.raises(WireError, match="Not lab/act"):
        checkpoint.find("lab/act", "", lambda _: None, judge)
    assert set(hub.asked) == TELLING


def test_what_the_disk_has_no_room_for_is_not_begun(hub: Hub) -> None:
    hub.sizes["model.safetensors"] = 700 * 10**12
    refused("lab/act", Reason.POLICY_LOAD_FAILED, "700000.0 GB", "left", "HF_HOME")
    assert "model.safetensors" not in hub.asked


def test_a_configuration_without_end_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["lab/act"]["config.json"] = bytes(60_000_000)
    refused("lab/act", Reason.POLICY_LOAD_FAILED)
    assert set(hub.asked) <= TELLING


def test_a_file_that_would_lie_elsewhere_is_not_written(hub: Hub, tmp_path: Path) -> None:
    hub.models["lab/act"] |= {"../../../../evil.json": b"{}", "/evil.json": b"{}", "..\\evil.json": b"{}"}
    outside = tmp_path.parent / "evil.json"
    with contextlib.suppress(WireError):
        find("lab/act")
    assert not outside.exists()
    assert not Path("/evil.json").exists()
    assert not [path for path in tmp_path.rglob("evil.json") if "snapshots" not in path.parts]


@pytest.mark.parametrize(
    ("name", "revision"), [("nobody/nothing", ""), ("lab/act", "v9"), ("lab/act", "refs/pr/1"), ("lab/act", "../x")]
)
def test_what_the_hub_does_not_have_is_not_found(hub: Hub, name: str, revision: str) -> None:
    refused(name, Reason.POLICY_NOT_FOUND, revision, revision=revision)


@pytest.mark.parametrize("name", ["a b/c", "-x", "--help", "a/b@main", "lab/\0act", "ünd/act", "x" * 97, "lab/..", "."])
def test_the_hub_is_not_asked_for_what_it_cannot_have(hub: Hub, name: str) -> None:
    with pytest.raises(WireError) as caught:
        find(name)
    assert caught.value.reason in (Reason.POLICY_NOT_FOUND, Reason.POLICY_UNSUPPORTED, Reason.POLICY_LOAD_FAILED)
    assert hub.asked == []


def test_a_hub_that_does_not_answer_may_do_so_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service that starts with its machine may be there before the network is."""
    go_online(monkeypatch, tmp_path, closed_address())
    refused("nobody/nothing", Reason.HUB_UNREACHABLE, "does not answer")


def test_a_name_that_is_not_in_the_cache_offline_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("nobody/nothing", Reason.POLICY_NOT_FOUND, "HF_HUB_OFFLINE", "'v1'", revision="v1")


def test_tells_the_share_of_bytes_and_ends_where_nobody_waits(hub: Hub) -> None:
    hub.silent.add("model.safetensors")
    news: list[pb.Progress] = []

    def report(progress: pb.Progress) -> None:
        news.append(progress)
        if hub.begun.is_set() and progress.fraction:
            raise LoadAbandonedError("lab/act")

    with pytest.raises(LoadAbandonedError):
        find("lab/act", report=report)
    assert 0 < news[-1].fraction < 1
    assert "of 3 MB" in news[-1].message
    assert hub.broken_off.wait(PATIENCE_SECONDS)


def test_a_hub_that_says_nothing_is_waited_for_no_longer_than_anybody_waits(hub: Hub) -> None:
    hub.mute = True

    def report(progress: pb.Progress) -> None:
        assert not progress.fraction
        if hub.begun.is_set():
            raise LoadAbandonedError("lab/act")

    with pytest.raises(LoadAbandonedError):
        find("lab/act", report=report)


def test_a_fetch_ends_soon_after_the_last_robot_hung_up(
    hub: Hub, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "ABANDONED_SECONDS", 0.3)
    loader = FetchingLoader()
    stub = serve(lambda: loader).stub
    hub.silent.add("model.safetensors")
    calls = [stub.OpenSession(opening("lab/act")) for _ in range(2)]
    waiting = [threading.Thread(target=drain, args=(call,)) for call in calls]
    for thread in waiting:
        thread.start()
    assert hub.begun.wait(PATIENCE_SECONDS)
    calls[0].cancel()
    assert not hub.broken_off.wait(1.0)
    calls[1].cancel()
    assert hub.broken_off.wait(PATIENCE_SECONDS)
    for thread in waiting:
        thread.join()
    # The next robot begins anew
    hub.silent.clear()
    assert open_session(stub, "lab/act").session_id
    assert [choice.revision for choice in loader.loads] == [COMMIT]


def test_what_is_here_is_loaded_while_another_is_fetched(hub: Hub, serve: Serve, tmp_path: Path) -> None:
    stub = serve(FetchingLoader).stub
    hub.silent.add("model.safetensors")
    call = stub.OpenSession(opening("lab/act"))
    assert hub.begun.wait(PATIENCE_SECONDS)
    assert open_session(stub, str(tmp_path)).session_id
    assert not hub.broken_off.is_set()
    call.cancel()


def test_a_fetch_ends_with_the_service(hub: Hub) -> None:
    """However it ended."""
    hub.silent.add("model.safetensors")
    program = "from longarm_service import hub; hub.fetch('lab/act', 'main', lambda _: None)"
    service = subprocess.Popen([sys.executable, "-c", program])
    assert hub.begun.wait(PATIENCE_SECONDS)
    service.kill()
    service.wait()
    assert hub.broken_off.wait(PATIENCE_SECONDS)


def drain(call: object) -> None:
    try:
        for _ in call:  # type: ignore[attr-defined]
            pass
    except Exception:  # cancelled
        return


def test_a_load_that_nobody_waits_for_does_not_begin(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks and hangs up, again and again, has no more loads running than there may be policies."""
    monkeypatch.setattr(shelf, "ABANDONED_SECONDS", 0.0)
    loader = FakeLoader()
    service = serve(lambda: loader, max_loaded_policies=1)
    entries = service.service._shelf._entries
    loader.gate.clear()
    for name in ("first", "second", "third"):
        call = service.stub.OpenSession(opening(name))
        await_that(lambda name=name: [choice.pretrained_name_or_path for choice in list(entries)] == [name])  # type: ignore[misc]
        if name == "first":
            loader.wait_until_loading()
        call.cancel()
        await_that(lambda: not [entry for entry in list(entries.values()) if entry.use_count])
    threading.Timer(0.5, loader.gate.set).start()
    assert open_session(service.stub, "last").session_id
    assert [choice.pretrained_name_or_path for choice in loader.loads] == ["first", "last"]


def test_a_load_for_which_others_take_the_room_is_ended(serve: Serve) -> None:
    """With its process, whatever it is in the middle of."""
    loader = ProcessLoader({}, load_timeout_seconds=600.0, predict_timeout_seconds=600.0, factory=FACTORY)
    service = serve(lambda: loader, max_loaded_policies=1)
    call = service.stub.OpenSession(opening("hangs"))
    assert next(call).progress.stage == pb.PROGRESS_STAGE_LOADING
    (process,) = [one for one in loader._processes if one.fate is None]
    call.cancel()
    entries = service.service._shelf._entries
    await_that(lambda: not [entry for entry in list(entries.values()) if entry.use_count])
    assert open_session(service.stub).session_id
    await_that(lambda: is_gone(process._pid))


def test_a_fetch_in_another_process_ends_soon_after_the_last_robot_hung_up(
    hub: Hub, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "ABANDONED_SECONDS", 0.3)
    loader = ProcessLoader({}, load_timeout_seconds=600.0, predict_timeout_seconds=600.0, factory=FETCHING)
    service = serve(lambda: loader)
    hub.silent.add("model.safetensors")
    call = service.stub.OpenSession(opening("lab/act"))
    assert next(call).progress.message
    assert hub.begun.wait(PATIENCE_SECONDS)
    call.cancel()
    assert hub.broken_off.wait(PATIENCE_SECONDS)
    hub.silent.clear()
    assert open_session(service.stub, "lab/act").fingerprint.revision == COMMIT


def closed_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        return f"http://127.0.0.1:{nobody.getsockname()[1]}"
