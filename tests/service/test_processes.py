"""Each policy in a process of its own: what one does, or what is done to it, is nothing to the others."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.service.conftest import Serve
from tests.service.fakes import (
    CHUNK_SIZE,
    PATIENCE_SECONDS,
    RunningService,
    actions_of,
    failing,
    observation,
    open_session,
    opening,
    robot,
)
from tests.service.far_policies import FACTORY, NEVER_FORKED
from tests.service.test_lerobot import answer, some_observation
from tests.service.test_lifecycle import SERVING, http, wait_for_health

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import parcels
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.policy import Answer, Observation, Order, PolicyChoice
from longarm_service.process_loader import LEROBOT_LOADER, ProcessLoader, ProcessPolicy
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcConfig, RtcPrefix

# What hangs is ended after this; nothing else takes as long
HANGING_SECONDS = 3.0


class KeptLoader(ProcessLoader):
    """Outlives the services that use it: what its processes are forked from takes seconds to import."""

    def close(self) -> None:
        for process in self._processes:
            process.end("The test is over.")


def kept(factory: str, seconds: float, imports: Sequence[str] = (), **arguments: str) -> Iterator[KeptLoader]:
    loader = KeptLoader(
        arguments, load_timeout_seconds=seconds, predict_timeout_seconds=seconds, factory=factory, imports=imports
    )
    yield loader
    ProcessLoader.close(loader)


@pytest.fixture(scope="module")
def far() -> Iterator[KeptLoader]:
    yield from kept(FACTORY, HANGING_SECONDS)


@pytest.fixture
def service(serve: Serve, far: KeptLoader) -> RunningService:
    return serve(lambda: far, obs_queue_timeout=PATIENCE_SECONDS, max_batch_size=8)


def policy_of(service: RunningService, name: str = "policy") -> ProcessPolicy:
    (policy,) = [p for p in service.service._shelf.policies if p.fingerprint.pretrained_name_or_path == name]
    assert isinstance(policy, ProcessPolicy)
    return policy


def pid_of(service: RunningService) -> int:
    return policy_of(service)._process._pid


def is_gone(pid: int) -> bool:
    try:
        # A zombie has ended and waits to be looked at
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def await_that(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def predict(service: RunningService, session: pb.SessionDescription, **changes: Any) -> np.ndarray:
    return actions_of(service.stub.PredictChunk(observation(session, **changes), timeout=PATIENCE_SECONDS))


def test_messages_arrive_as_they_were() -> None:
    ours, theirs = socket.socketpair()
    picture = np.arange(3 * 1_000_000, dtype=np.uint8).reshape(1000, 1000, 3)
    message = {
        "id": 3,
        "orders": [
            Order(7, Observation(np.float32([1, np.pi]), {"front": picture[::2]}, "pick ü", ""), rtc=RtcConfig())
        ],
        "nothing": np.zeros((0, 4), np.float32),
        "none": None,
    }
    sender = threading.Thread(target=parcels.send, args=(ours, message))
    sender.start()
    found = parcels.receive(theirs)
    sender.join()
    assert found is not None
    (order,) = found["orders"]
    np.testing.assert_array_equal(order["observation"].pop("state"), np.float32([1, np.pi]))
    np.testing.assert_array_equal(order["observation"].pop("images")["front"], picture[::2])
    assert order["observation"] == {"task": "pick ü", "robot_type": ""}
    assert order["rtc"] == {
        "execution_horizon": 10,
        "max_guidance_weight": 10.0,
        "prefix_attention_schedule": "LINEAR",
    }
    assert (order["processors"], order["new_episode"], order["prefix"]) == (7, False, None)
    assert (found["nothing"].shape, found["nothing"].dtype) == ((0, 4), np.float32)
    assert (found["id"], found["none"]) == (3, None)
    ours.sendall(b"\1")
    ours.close()
    assert parcels.receive(theirs) is None, "half a message is the end"
    theirs.close()


def test_a_session_in_another_process_is_like_one_in_this(service: RunningService) -> None:
    session = open_session(service.stub)
    assert session.chunk_size == CHUNK_SIZE
    white = pb.Image(camera="front", codec=pb.IMAGE_CODEC_RAW, height=8, width=10, data=b"\xff" * 240)
    np.testing.assert_array_equal(predict(service, session)[:, 0], 1 + np.arange(CHUNK_SIZE))
    np.testing.assert_array_equal(predict(service, session, images=[white])[:, 0], 256 + np.arange(CHUNK_SIZE))
    with failing(Reason.POLICY_FAILED, "fake policy failed: RuntimeError"):
        predict(service, session, task="poison")
    predict(service, session)
    assert service.metric("batch_size_count") == 3
    info = service.stub.GetServiceInfo(pb.GetServiceInfoRequest())
    assert (info.device, info.device_name, info.lerobot_version) == ("cpu", "abacus", "1.2")
    with failing(Reason.POLICY_NOT_FOUND, "There is no 'nothing'"):
        open_session(service.stub, "nothing")
    with failing(Reason.INTERNAL, "RuntimeError"):
        open_session(service.stub, "bug")


def test_what_is_wrong_with_one_order_is_no_fault_of_the_others(far: KeptLoader) -> None:
    policy = far.load(PolicyChoice("policy"), lambda _: None)
    seen = Observation(np.float32([1, 2, 3]), {"observation.images.front": np.zeros((8, 10, 3), np.uint8)}, "", "")
    gone = policy.open_processors()
    gone.close()
    good = policy.open_processors()
    first, second = policy.answer([Order(gone, seen), Order(good, seen)], lambda _: None)
    assert isinstance(first, WireError)
    assert isinstance(second, Answer)
    policy.close()


def test_processors_end_with_their_session(service: RunningService) -> None:
    """A robot that reconnects for days must not fill the memory of the policy's process."""
    for _ in range(3):
        session = open_session(service.stub)
        predict(service, session)
        service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    assert len(policy_of(service)._process.closed) == 1, "those before went along with a call"


def test_processors_that_nobody_waits_for_any_more_are_closed(service: RunningService, tmp_path: Path) -> None:
    """Else whoever hangs up again and again fills the memory of a policy that others use."""
    session = open_session(service.stub)
    begun = tmp_path / "begun"
    slow = robot(action_names=(f"slow {begun}", "elbow.pos", "gripper.pos"))
    call = service.stub.OpenSession(opening(robot=slow))
    await_that(begun.exists)
    call.cancel()
    await_that(lambda: policy_of(service)._process.closed)
    predict(service, session)
    assert not policy_of(service)._process.closed


def test_a_load_that_holds_its_interpreter_holds_nobody_else(service: RunningService) -> None:
    session = open_session(service.stub)
    hanging = service.stub.OpenSession(opening("hangs"))
    assert next(hanging).progress.stage == pb.PROGRESS_STAGE_LOADING
    for _ in range(20):
        predict(service, session)
    open_session(service.stub, "another")
    with failing(Reason.POLICY_LOAD_FAILED, "'hangs'", "hung", f"{HANGING_SECONDS:g} s"):
        list(hanging)
    predict(service, session)


@pytest.mark.parametrize(
    ("name", "words"), [("killed", ["memory runs out", "max_loaded_policies"]), ("crashes", ["SIGSEGV"])]
)
def test_a_load_that_is_killed_is_told_as_such(service: RunningService, name: str, words: list[str]) -> None:
    with failing(Reason.POLICY_LOAD_FAILED, repr(name), *words):
        open_session(service.stub, name)
    open_session(service.stub)


def test_a_file_that_becomes_shorter_while_it_is_read_ends_that_load_alone(
    service: RunningService, tmp_path: Path
) -> None:
    """Weights are mapped: the kernel ends who reads on (SIGBUS)."""
    session = open_session(service.stub)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(1 << 16))
    with failing(Reason.POLICY_LOAD_FAILED, "SIGBUS", "being written? Try again"):
        open_session(service.stub, f"reads {file}")
    predict(service, session)
    open_session(service.stub, "another")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("hang", ["hung", f"{HANGING_SECONDS:g} s"]),
        ("die", ["SIGKILL"]),
        ("crash", ["SIGSEGV"]),
        ("lose the device", ["device"]),
    ],
)
def test_a_policy_that_breaks_is_ended_and_loaded_anew(service: RunningService, task: str, words: list[str]) -> None:
    """The robot learns that its session is gone and opens a new one, as after a restart; the others notice nothing."""
    session, other = open_session(service.stub), open_session(service.stub, "another")
    before, policy = pid_of(service), policy_of(service)
    with failing(Reason.POLICY_FAILED):
        predict(service, session, task=task)
    await_that(lambda: is_gone(before) and policy.failure)
    predict(service, other)
    with failing(Reason.SESSION_UNKNOWN, *words):
        predict(service, session)
    predict(service, open_session(service.stub))
    assert pid_of(service) != before
    assert service.metric("policies_loaded") == 2
    assert service.metric("sessions") == 2


def test_who_comes_while_a_prediction_takes_long_waits_for_it(service: RunningService, monkeypatch) -> None:
    """It was taken for a process that hangs: whoever opened a session ended the policy of everybody else."""
    monkeypatch.setattr("longarm_service.process_loader.CALL_SECONDS", 0.2)
    session = open_session(service.stub)
    before = pid_of(service)
    with ThreadPoolExecutor(1) as other:
        long = other.submit(predict, service, session, task="take long")
        time.sleep(0.3)
        predict(service, open_session(service.stub))
        long.result(PATIENCE_SECONDS)
    assert pid_of(service) == before


def test_a_preloaded_policy_that_breaks_is_loaded_anew_by_itself(serve: Serve, far: KeptLoader) -> None:
    service = serve(lambda: far, preload=("policy",))
    wait_for_health(service, SERVING)
    before = pid_of(service)
    os.kill(before, signal.SIGKILL)
    await_that(lambda: service.service._shelf.policies and pid_of(service) != before)
    await_that(lambda: http(service, "/readyz") == (200, "ready\n"))
    assert service.metric("policies_loaded") == 1


def test_nobody_drives_out_what_is_preloaded(serve: Serve, far: KeptLoader) -> None:
    service = serve(lambda: far, preload=("policy",), max_loaded_policies=2)
    wait_for_health(service, SERVING)
    before = pid_of(service)
    for name in "abc":
        session = open_session(service.stub, name)
        service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    assert pid_of(service) == before


def test_memory_is_given_back_when_a_policy_makes_room(serve: Serve, far: KeptLoader) -> None:
    service = serve(lambda: far, max_loaded_policies=1)
    session = open_session(service.stub)
    before = pid_of(service)
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    open_session(service.stub, "another")
    await_that(lambda: is_gone(before))


def test_the_memory_of_all_processes_is_shown(service: RunningService) -> None:
    for name in ("policy", "another"):
        open_session(service.stub, name)
    wait_for_health(service, SERVING)
    assert service.metric("gpu_memory_allocated_bytes", device="cuda:0") == 20
    assert service.metric("gpu_memory_reserved_bytes", device="cuda:1") == 4
    assert service.metric("gpu_memory_total_bytes", device="cuda:0") == 80
    assert service.metric("gpu_utilization_ratio", device="cuda:0") == 0.5


def test_where_an_import_used_the_gpu_processes_are_not_forked(serve: Serve) -> None:
    """CUDA does not survive a fork: torch would say that there is no GPU, and policies would run on the CPU."""
    loader = ProcessLoader(
        {}, load_timeout_seconds=PATIENCE_SECONDS, predict_timeout_seconds=PATIENCE_SECONDS, factory=NEVER_FORKED
    )
    service = serve(lambda: loader)
    predict(service, open_session(service.stub))
    before = pid_of(service)
    service.close()
    await_that(lambda: is_gone(before))


@pytest.fixture(scope="module")
def lerobot() -> Iterator[KeptLoader]:
    yield from kept(LEROBOT_LOADER, 10 * PATIENCE_SECONDS, device="cpu")


def asked(policy: ProcessPolicy, seen: Observation, **changes: Any) -> Answer:
    (found,) = policy.answer([Order(policy.open_processors(), seen, **changes)], lambda _: None)
    assert isinstance(found, Answer), found
    return found


def test_lerobot_answers_from_another_process_to_the_bit(lerobot: KeptLoader, act_checkpoint: Path) -> None:
    choice = PolicyChoice(str(act_checkpoint))
    here, there = LerobotLoader("cpu").load(choice, lambda _: None), lerobot.load(choice, lambda _: None)
    assert (there.spec, there.fingerprint, there.saved_renames) == (here.spec, here.fingerprint, here.saved_renames)
    assert there.takes_batches
    assert lerobot.is_current(there)
    for seed in range(3):
        seen = some_observation(seed)
        np.testing.assert_array_equal(asked(there, seen).actions, answer(here, seen))
    there.close()
    assert not lerobot.is_current(there), "what has ended is loaded anew"


def test_real_time_chunking_reaches_the_other_process(lerobot: KeptLoader, smolvla_checkpoint: Path) -> None:
    choice = PolicyChoice(str(smolvla_checkpoint))
    there = lerobot.load(choice, lambda _: None)
    assert there.spec.supports_rtc
    seen = replace(some_observation(), task="pick")
    first = asked(there, seen, rtc=RtcConfig())
    assert first.model_actions is not None
    prefix = RtcPrefix(2, first.model_actions + 50, first.actions)
    led = asked(there, seen, rtc=RtcConfig(), prefix=prefix)
    assert led.model_actions is not None
    assert (
        np.abs(led.model_actions[:2] - prefix.model_actions[:2]).max()
        < np.abs(first.model_actions[:2] - prefix.model_actions[:2]).min()
    )
    there.close()


def test_no_load_changes_what_another_policy_answers(
    lerobot: KeptLoader, act_checkpoint: Path, smolvla_checkpoint: Path
) -> None:
    """Transformers sets torch's default type while it builds: predictions in between failed, or lost precision."""
    policy = lerobot.load(PolicyChoice(str(act_checkpoint)), lambda _: None)
    seen = some_observation()
    expected = asked(policy, seen).actions

    def load() -> None:
        lerobot.load(PolicyChoice(str(smolvla_checkpoint), dtype="bfloat16"), lambda _: None).close()

    loading = threading.Thread(target=load)
    loading.start()
    count = 0
    while loading.is_alive():
        np.testing.assert_array_equal(asked(policy, seen).actions, expected)
        count += 1
    assert count > 3
    policy.close()
