"""What happens while the policy is busy: superseding, fairness, timeouts, giving up, and everything else answers."""

import time
from typing import Any

import grpc
import pytest
from tests.service.conftest import Serve
from tests.service.fakes import (
    PATIENCE_SECONDS,
    FakeLoader,
    RunningService,
    actions_of,
    failing,
    observation,
    open_session,
)

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire.errors import Reason, from_rpc_error


def wait_for_waiting(service: RunningService, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while service.stub.GetServiceInfo(pb.GetServiceInfoRequest()).waiting_count != count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def reason_of(call: Any) -> Reason:
    with pytest.raises(grpc.RpcError) as caught:
        call.result(PATIENCE_SECONDS)
    failure = from_rpc_error(caught.value)
    assert failure is not None
    return failure.reason


def test_the_newest_observation_of_a_session_supersedes_its_older_one(serve: Serve, loader: FakeLoader) -> None:
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    session = open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(observation(session, (1, 1, 1), sequence=1))
    policy.wait_until_predicting()
    old = service.stub.PredictChunk.future(observation(session, (2, 2, 2), sequence=2))
    wait_for_waiting(service, 1)
    new = service.stub.PredictChunk.future(observation(session, (3, 3, 3), sequence=3))
    assert reason_of(old) is Reason.SUPERSEDED
    policy.gate.set()
    assert actions_of(running.result(PATIENCE_SECONDS))[0, 0] == 1
    assert actions_of(new.result(PATIENCE_SECONDS))[0, 0] == 3
    assert service.metric("observations_total", outcome="superseded") == 1
    assert service.metric("observations_total", outcome="answered") == 2


def test_sessions_take_turns(serve: Serve, loader: FakeLoader) -> None:
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    greedy, modest = open_session(service.stub, task="greedy"), open_session(service.stub, task="modest")
    policy = loader.policies["policy"]
    policy.gate.clear()
    calls = [service.stub.PredictChunk.future(observation(greedy))]
    policy.wait_until_predicting()
    calls.append(service.stub.PredictChunk.future(observation(modest)))
    wait_for_waiting(service, 1)
    greedy_calls = []
    for sequence in range(2, 6):
        greedy_calls.append(service.stub.PredictChunk.future(observation(greedy, sequence=sequence)))
        wait_for_waiting(service, 2)
        for older in greedy_calls[:-1]:
            assert reason_of(older) is Reason.SUPERSEDED
    policy.gate.set()
    calls[1].result(PATIENCE_SECONDS)
    greedy_calls[-1].result(PATIENCE_SECONDS)
    assert policy.tasks == ["greedy", "modest", "greedy"]


def test_an_observation_that_waits_too_long_is_refused_on_time(serve: Serve, loader: FakeLoader) -> None:
    service = serve(obs_queue_timeout=0.2)
    session, other = open_session(service.stub), open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(observation(other))
    policy.wait_until_predicting()
    begun = time.monotonic()
    with failing(Reason.QUEUE_TIMEOUT, "0.2 s"):
        service.stub.PredictChunk(observation(session))
    # While the policy is still at it: a robot must not learn it only afterwards
    assert 0.2 <= time.monotonic() - begun < PATIENCE_SECONDS / 2
    policy.gate.set()
    assert running.result(PATIENCE_SECONDS).step_count
    assert service.metric("observations_total", outcome="queue_timeout") == 1
    assert service.metric("queue_wait_seconds_count") == 2


def test_a_caller_that_gives_up_is_not_predicted_for(serve: Serve, loader: FakeLoader) -> None:
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    session, other = open_session(service.stub, task="kept"), open_session(service.stub, task="given up")
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(observation(session))
    policy.wait_until_predicting()
    with pytest.raises(grpc.RpcError) as caught:
        service.stub.PredictChunk(observation(other), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for_waiting(service, 0)
    policy.gate.set()
    running.result(PATIENCE_SECONDS)
    service.stub.PredictChunk(observation(session, sequence=2))
    assert policy.tasks == ["kept", "kept"]
    assert service.metric("observations_total", outcome="cancelled") == 1


def test_a_caller_that_gives_up_during_its_prediction_leaves_the_service_well(serve: Serve, loader: FakeLoader) -> None:
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    session = open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    call = service.stub.PredictChunk.future(observation(session))
    policy.wait_until_predicting()
    call.cancel()
    policy.gate.set()
    assert actions_of(service.stub.PredictChunk(observation(session, (9, 9, 9), sequence=2)))[0, 0] == 9


def test_everything_else_answers_during_a_long_prediction(serve: Serve, loader: FakeLoader) -> None:
    """openpi predicts on its event loop: health checks and other robots wait."""
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    session = open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(observation(session))
    policy.wait_until_predicting()
    begun = time.monotonic()
    assert service.stub.GetServiceInfo(pb.GetServiceInfoRequest()).session_count == 1
    other = open_session(service.stub)
    service.stub.ResetSession(pb.ResetSessionRequest(session_id=other.session_id))
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=other.session_id))
    assert time.monotonic() - begun < 2
    assert not running.done()
    policy.gate.set()
    running.result(PATIENCE_SECONDS)
