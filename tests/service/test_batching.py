"""Observations of several sessions in one forward pass: the same answers, fair turns, and no harm to each other."""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.service.checkpoints import SMALL_DIFFUSION, preprocessed, save
from tests.service.conftest import Serve
from tests.service.fakes import (
    PATIENCE_SECONDS,
    Clock,
    FakeLoader,
    RunningService,
    actions_of,
    fake_spec,
    observation,
    open_session,
)
from tests.service.test_waiting import reason_of, wait_for_waiting

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.lerobot_policy import LerobotPolicy
from longarm_service.metrics import ServiceMetrics
from longarm_service.policy import Observation, PolicyChoice
from longarm_service.worker import Company, Worker
from longarm_wire.errors import Reason
from longarm_wire.rtc import RtcConfig


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader(batching=True)


class Robots:
    """Several sessions whose observations wait while the policy is held up by another one."""

    def __init__(self, service: RunningService, loader: FakeLoader) -> None:
        self.service = service
        self.stub = service.stub
        self.holder = open_session(self.stub, task="holder")
        self.policy = loader.policies["policy"]
        self.waiting: dict[str, Any] = {}

    def hold(self) -> None:
        self.policy.gate.clear()
        self.held = self.stub.PredictChunk.future(observation(self.holder))
        self.policy.wait_until_predicting()

    def send(self, task: str, number: float = 0.0, name: str = "policy", **changes: Any) -> None:
        session = open_session(self.stub, name, task=task, rtc=changes.pop("rtc", None))
        request = observation(session, (number, number, number), **changes)
        self.waiting[task] = self.stub.PredictChunk.future(request)
        wait_for_waiting(self.service, len(self.waiting))

    def release(self) -> None:
        self.policy.gate.set()
        self.held.result(PATIENCE_SECONDS)

    def first_value(self, task: str) -> float:
        return float(actions_of(self.waiting[task].result(PATIENCE_SECONDS))[0, 0])


@pytest.fixture
def robots(serve: Serve, loader: FakeLoader) -> Robots:
    return Robots(serve(obs_queue_timeout=PATIENCE_SECONDS, max_batch_size=3), loader)


def test_what_waits_is_predicted_together_and_each_gets_its_own(robots: Robots) -> None:
    robots.hold()
    for number, task in enumerate("abc"):
        robots.send(task, number=10.0 * number)
    robots.release()
    assert [robots.first_value(task) for task in "abc"] == [0, 10, 20]
    assert robots.policy.batches == [["a", "b", "c"]]
    assert robots.service.metric("batch_size_count") == 2
    assert robots.service.metric("batch_size_sum") == 4
    assert robots.service.metric("observations_total", outcome="answered") == 4


def test_a_batch_is_no_larger_than_allowed_and_the_rest_comes_next_in_order(robots: Robots) -> None:
    robots.hold()
    for task in "abcdefg":
        robots.send(task)
    robots.release()
    for task in "abcdefg":
        robots.first_value(task)
    assert robots.policy.batches == [["a", "b", "c"], ["d", "e", "f"]]
    assert robots.policy.tasks == ["holder", *"abcdefg"]


def test_a_policy_that_is_busy_holds_up_no_other(robots: Robots) -> None:
    """Nor is who waits for it mixed up with who asks another."""
    robots.hold()
    robots.send("a")
    other = open_session(robots.stub, "other", task="x")
    assert actions_of(robots.stub.PredictChunk(observation(other), timeout=PATIENCE_SECONDS)).size
    robots.send("b")
    robots.release()
    for task in "ab":
        robots.first_value(task)
    assert robots.policy.batches == [["a", "b"]]
    assert robots.policy.tasks == ["holder", "a", "b"]


def test_shapes_that_differ_are_predicted_apart(robots: Robots) -> None:
    robots.hold()
    for task in ("a", "another shape", "b"):
        robots.send(task)
    robots.release()
    for task in ("a", "another shape", "b"):
        robots.first_value(task)
    assert robots.policy.batches == [["a", "b"]]


def test_what_is_wrong_with_one_observation_is_no_fault_of_the_others(robots: Robots) -> None:
    robots.hold()
    robots.send("a", number=1.0)
    robots.send("b", number=math.nan)
    robots.send("c", number=3.0)
    robots.release()
    assert reason_of(robots.waiting["b"]) is Reason.INVALID_REQUEST
    assert [robots.first_value(task) for task in "ac"] == [1, 3]
    assert robots.policy.batches == [["a", "c"]]


def test_a_batch_that_fails_is_predicted_one_by_one(robots: Robots) -> None:
    robots.hold()
    for number, task in enumerate(("a", "poison", "c")):
        robots.send(task, number=float(number))
    robots.release()
    assert reason_of(robots.waiting["poison"]) is Reason.POLICY_FAILED
    assert [robots.first_value(task) for task in "ac"] == [0, 2]
    assert robots.policy.batches == [["a", "poison", "c"]]
    assert robots.service.metric("batch_size_sum") == 3


def test_an_answer_that_is_no_number_fails_its_own_robot_alone(robots: Robots) -> None:
    robots.hold()
    robots.policy.faults += ["", "", "nan"]
    for number, task in enumerate("abc"):
        robots.send(task, number=float(number))
    robots.release()
    assert reason_of(robots.waiting["b"]) is Reason.POLICY_RETURNED_INVALID
    assert [robots.first_value(task) for task in "ac"] == [0, 2]


def test_real_time_chunking_is_never_batched(serve: Serve, loader: FakeLoader) -> None:
    """Each prediction has a delay and settings of its own."""
    loader.spec = fake_spec(supports_rtc=True, model_action_dim=3)
    robots = Robots(serve(obs_queue_timeout=PATIENCE_SECONDS, max_batch_size=8), loader)
    robots.hold()
    for task in "ab":
        robots.send(task, rtc=RtcConfig().to_proto())
    robots.send("c")
    robots.release()
    for task in "abc":
        robots.first_value(task)
    assert robots.policy.batches == []
    assert [guidance is not None for guidance in robots.policy.guidances] == [False, True, True, False]


@pytest.mark.parametrize(
    ("device", "size", "batches"),
    [("cuda", 1, []), ("cpu", 0, []), ("cuda", 0, [["a", "b", "c"]]), ("cpu", 3, [["a", "b", "c"]])],
)
def test_what_is_set_is_what_is_batched(
    serve: Serve, loader: FakeLoader, device: str, size: int, batches: list[list[str]]
) -> None:
    loader.device = device
    robots = Robots(serve(obs_queue_timeout=PATIENCE_SECONDS, max_batch_size=size), loader)
    robots.hold()
    for task in "abc":
        robots.send(task)
    robots.release()
    for task in "abc":
        robots.first_value(task)
    assert robots.policy.batches == batches


def test_while_the_policy_is_free_an_observation_waits_a_moment_for_the_others(
    serve: Serve, loader: FakeLoader
) -> None:
    stub = serve(batch_window=0.1, max_batch_size=8).stub
    sessions = [open_session(stub, task=task) for task in "abc"]
    policy = loader.policies["policy"]
    for sequence in itertools.count(1):
        calls = [stub.PredictChunk.future(observation(session, sequence=sequence)) for session in sessions]
        for call in calls:
            call.result(PATIENCE_SECONDS)
        # A machine that stalls for longer than the window tries again
        if ["a", "b", "c"] in [sorted(batch) for batch in policy.batches]:
            return
        assert sequence < 20


def test_nobody_waits_where_one_session_uses_the_policy(serve: Serve) -> None:
    stub = serve(batch_window=0.1, max_batch_size=8).stub
    session = open_session(stub)
    open_session(stub, "other")
    begun = time.monotonic()
    for sequence in range(1, 21):
        stub.PredictChunk(observation(session, sequence=sequence))
    assert time.monotonic() - begun < 20 * 0.1 * 0.8


def test_a_newer_observation_supersedes_one_that_waits_for_company(serve: Serve, loader: FakeLoader) -> None:
    stub = serve(batch_window=0.1, max_batch_size=8, obs_queue_timeout=PATIENCE_SECONDS).stub
    session, _other = open_session(stub, task="a"), open_session(stub, task="b")
    for sequence in itertools.count(1, 2):
        old = stub.PredictChunk.future(observation(session, sequence=sequence))
        new = stub.PredictChunk.future(observation(session, (5, 5, 5), sequence=sequence + 1))
        assert actions_of(new.result(PATIENCE_SECONDS))[0, 0] == 5
        if old.exception(PATIENCE_SECONDS) is not None:
            assert reason_of(old) is Reason.SUPERSEDED
            return
        assert sequence < 40


def test_a_session_that_supersedes_itself_all_the_time_stretches_nobodys_batch() -> None:
    """While one waits for company, each newer observation of it would let the wait begin anew."""
    clock = Clock()
    company = Company("policy", most=8, expected=3)

    async def serve() -> list[list[str]]:
        batches: list[list[str]] = []

        def work(jobs: Sequence[str]) -> list[str]:
            batches.append(list(jobs))
            return list(jobs)

        with contextlib.closing(Worker(work, PATIENCE_SECONDS, 0.1, ServiceMetrics(), clock)) as worker:
            hasty = [asyncio.create_task(worker.run("a", "hasty", company))]
            modest = asyncio.create_task(worker.run("b", "modest", company))
            while not modest.done() and len(hasty) < 500:
                await asyncio.sleep(0.001)
                clock.now += 0.01
                hasty.append(asyncio.create_task(worker.run("a", "hasty", company)))
            assert modest.done()
            await asyncio.gather(*hasty[:-1], return_exceptions=True)
            hasty[-1].cancel()
        return batches

    # The first in line goes with whom it waited for, at the end of the window in which it got its place
    assert asyncio.run(serve())[0] == ["hasty", "modest"]


# --- Real policies


def load(directory: Path, **options: Any) -> LerobotPolicy:
    return LerobotLoader("cpu", **options).load(PolicyChoice(str(directory)), lambda _: None)


def observations(policy: LerobotPolicy, tasks: Sequence[str]) -> list[Observation]:
    random = np.random.default_rng(0)
    return [
        Observation(
            state=random.normal(0, 30, policy.spec.state_dim).astype(np.float32),
            images={k: random.integers(0, 256, (*size, 3), np.uint8) for k, size in policy.spec.cameras.items()},
            task=task,
            robot_type="test_arm",
        )
        for task in tasks
    ]


@pytest.mark.parametrize("kind", ["act", "smolvla"])
@pytest.mark.parametrize("count", [2, 5])
def test_a_batch_answers_what_each_would_get_alone(
    act_checkpoint: Path, smolvla_checkpoint: Path, kind: str, count: int
) -> None:
    policy = load(act_checkpoint if kind == "act" else smolvla_checkpoint)
    assert policy.takes_batches
    seen = observations(policy, ["pick the cup"] * count)
    processors = [policy.open_processors() for _ in seen]

    def prepared() -> list[Any]:
        return [preprocessed(p, one) for p, one in zip(processors, seen, strict=True)]

    torch.manual_seed(1)
    alone = [p.postprocess(policy.predict(one)) for p, one in zip(processors, prepared(), strict=True)]
    torch.manual_seed(1)  # SmolVLA begins with noise
    together = policy.predict_batch(prepared())
    assert len({policy.shape_of(one) for one in prepared()}) == 1
    for p, chunk, expected in zip(processors, together, alone, strict=True):
        np.testing.assert_allclose(p.postprocess(chunk), expected, rtol=1e-4, atol=1e-3)
    for one, other in itertools.combinations(alone, 2):
        assert np.abs(one - other).max() > 0.1, "answers that are alike would hide a mix-up"


def test_tasks_of_other_lengths_have_other_shapes(smolvla_checkpoint: Path) -> None:
    """SmolVLA's tokens are padded to the longest, which is each alone here."""
    policy = load(smolvla_checkpoint)
    processors = policy.open_processors()
    shapes = [
        policy.shape_of(preprocessed(processors, one))
        for one in observations(policy, ["pick the cup", "put the cube", "pick the red cup in the blue cup"])
    ]
    assert shapes[0] == shapes[1] != shapes[2]


def test_robots_that_share_a_real_policy_get_their_own_answers(serve: Serve, act_checkpoint: Path) -> None:
    names = tuple(f"joint_{i}.pos" for i in range(6))
    cameras = [pb.CameraSpec(name=name, height=48, width=64) for name in ("front", "wrist")]
    arm = pb.RobotSpec(robot_type="arm", action_names=names, state_names=names, cameras=cameras, fps=30)
    answers = {}
    for size in (1, 8):
        service = serve(lambda: LerobotLoader("cpu"), obs_queue_timeout=30.0, max_batch_size=size, batch_window=0.1)
        sessions = [open_session(service.stub, str(act_checkpoint), robot=arm) for _ in range(4)]
        requests = [observation(session, np.full(6, 20.0 * i)) for i, session in enumerate(sessions)]
        calls = [service.stub.PredictChunk.future(request) for request in requests]
        answers[size] = [actions_of(call.result(PATIENCE_SECONDS), 6) for call in calls]
        forwards = service.metric("batch_size_count")
        assert forwards == 4 if size == 1 else forwards < 4
    np.testing.assert_allclose(answers[8], answers[1], rtol=1e-4, atol=1e-3)
    assert np.abs(np.diff(answers[1], axis=0)).max() > 0.1


def test_policies_not_known_to_keep_robots_apart_are_never_batched(tmp_path: Path, act_checkpoint: Path) -> None:
    assert not load(save("diffusion", tmp_path, n_obs_steps=1, **SMALL_DIFFUSION)).takes_batches
    assert load(act_checkpoint).takes_batches


def test_a_compiled_policy_is_not_batched(act_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be compiled anew for each size of a batch, for minutes, while robots wait."""
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    assert not load(act_checkpoint, compiled=True).takes_batches


def test_a_batch_that_comes_back_short_counts_as_failed(act_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(act_checkpoint)
    processors = policy.open_processors()
    batches = [preprocessed(processors, one) for one in observations(policy, ["", ""])]
    monkeypatch.setattr(policy.model, "_forward", lambda _: torch.zeros(1, 12, 6))
    with pytest.raises(ValueError, match="Expected 2 chunks"):
        policy.predict_batch(batches)
