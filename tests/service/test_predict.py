"""Observations in, chunks out: over a real server, with a scripted policy."""

import time
from concurrent import futures

import cv2
import grpc
import numpy as np
import pytest
from tests.service.conftest import Serve
from tests.service.fakes import (
    CHUNK_SIZE,
    HEIGHT,
    JOINTS,
    PATIENCE_SECONDS,
    SECRET,
    WIDTH,
    FakeLoader,
    actions_of,
    failing,
    fake_spec,
    observation,
    open_session,
    raw_image,
    robot,
)

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_wire import images, limits, tensors
from longarm_wire.errors import Reason


def test_answers_an_observation_with_a_chunk(serve: Serve) -> None:
    stub = serve().stub
    session = open_session(stub)
    response = stub.PredictChunk(observation(session, (10, 20, 30), sequence=4, episode=2, tick=9))
    assert (response.sequence, response.episode, response.tick) == (4, 2, 9)
    expected = np.arange(CHUNK_SIZE)[:, None] + np.array([10, 20, 30])
    np.testing.assert_array_equal(actions_of(response), expected)
    assert not response.model_actions


def test_every_reply_carries_the_secret_of_its_session(serve: Serve) -> None:
    stub = serve().stub
    one, other = open_session(stub), open_session(stub)
    assert len(one.reply_secret) == 16
    assert one.reply_secret != other.reply_secret
    for session in (one, other, one):
        assert stub.PredictChunk(observation(session)).reply_secret == session.reply_secret


def test_durations_add_up_to_no_more_than_the_whole(serve: Serve) -> None:
    stub = serve().stub
    durations = stub.PredictChunk(observation(open_session(stub))).durations
    parts = [
        getattr(durations, f"{stage}_duration").ToNanoseconds()
        for stage in ("queue", "decode", "preprocess", "predict", "postprocess")
    ]
    assert all(part >= 0 for part in parts)
    assert 0 < sum(parts) <= durations.total_duration.ToNanoseconds()


def test_answers_no_more_than_actions_per_chunk(serve: Serve) -> None:
    stub = serve().stub
    session = open_session(stub, actions_per_chunk=2)
    assert session.chunk_size == 2
    assert stub.PredictChunk(observation(session)).step_count == 2


def test_a_policy_gives_no_more_than_it_predicts(serve: Serve) -> None:
    assert open_session(serve().stub, actions_per_chunk=500).chunk_size == CHUNK_SIZE


def test_the_task_of_a_request_replaces_that_of_the_session(serve: Serve, loader: FakeLoader) -> None:
    stub = serve().stub
    session = open_session(stub, task="pick")
    stub.PredictChunk(observation(session))
    stub.PredictChunk(observation(session, task="place"))
    stub.PredictChunk(observation(session, task=""))
    assert loader.policies["policy"].tasks == ["pick", "place", ""]


@pytest.mark.parametrize(
    ("codec", "kind"),
    [(images.Codec.JPEG, pb.IMAGE_CODEC_JPEG), (images.Codec.PNG, pb.IMAGE_CODEC_PNG), (images.Codec.RAW, 3)],
)
def test_takes_every_codec(serve: Serve, codec: images.Codec, kind: int) -> None:
    stub = serve().stub
    session = open_session(stub)
    frame = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    image = pb.Image(camera="front", codec=kind, height=HEIGHT, width=WIDTH, data=images.encode(frame, codec))
    actions = actions_of(stub.PredictChunk(observation(session, (0, 0, 0), images=[image])))
    assert actions[0] == pytest.approx([100, 100, 100], abs=2)


def test_two_sessions_do_not_mix(serve: Serve) -> None:
    """LeRobot's server has one queue for all: two robots on it executed 40 % of each other's actions."""
    stub = serve(obs_queue_timeout=PATIENCE_SECONDS).stub
    sessions = [open_session(stub) for _ in range(4)]

    def drive(number: int) -> None:
        for step in range(25):
            state = np.array([100 * number, step, -step], np.float32)
            frame = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
            request = observation(sessions[number], state, sequence=step + 1, images=[raw_image("front", frame)])
            np.testing.assert_array_equal(actions_of(stub.PredictChunk(request))[0], state + number)

    with futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(drive, number) for number in range(4)]:
            done.result(PATIENCE_SECONDS)


def test_reset_reaches_the_processors_of_the_session_alone(serve: Serve, loader: FakeLoader) -> None:
    stub = serve().stub
    one, other = open_session(stub), open_session(stub)
    for session in (one, other):
        stub.PredictChunk(observation(session))
    before = [processors.resets for processors in loader.policies["policy"].opened]
    stub.ResetSession(pb.ResetSessionRequest(session_id=one.session_id, episode=1))
    for session in (one, other):
        stub.PredictChunk(observation(session))
    after = [processors.resets for processors in loader.policies["policy"].opened]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0]


def test_a_new_episode_resets_even_if_the_call_for_it_was_lost(serve: Serve, loader: FakeLoader) -> None:
    stub = serve().stub
    session = open_session(stub)
    for episode in (0, 0, 1, 1):
        stub.PredictChunk(observation(session, episode=episode))
    assert loader.policies["policy"].opened[0].resets == 2


def bad_requests() -> list[tuple[str, dict[str, object], Reason, str]]:
    good = raw_image("front", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    jpeg = images.encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    huge = cv2.imencode(".png", np.zeros((3000, 3000), np.uint8))[1].tobytes()

    def packed(codec: int, data: bytes) -> list[pb.Image]:
        return [pb.Image(camera="front", codec=codec, height=HEIGHT, width=WIDTH, data=data)]

    nan = tensors.pack(np.array([0, np.nan, 0], np.float32))
    return [
        ("short state", {"state": tensors.pack(np.zeros(2))}, Reason.INVALID_REQUEST, "12 bytes"),
        ("no state", {"state": b""}, Reason.INVALID_REQUEST, "shoulder.pos, elbow.pos, gripper.pos"),
        ("NaN state", {"state": nan}, Reason.INVALID_REQUEST, "elbow.pos"),
        ("no image", {"images": []}, Reason.INVALID_REQUEST, "['front']"),
        ("image twice", {"images": [good, good]}, Reason.INVALID_REQUEST, "['front', 'front']"),
        ("other camera", {"images": [raw_image("top", np.zeros((8, 10, 3), np.uint8))]}, Reason.INVALID_REQUEST, "top"),
        (
            "other size",
            {"images": [raw_image("front", np.zeros((480, 640, 3), np.uint8))]},
            Reason.INVALID_IMAGE,
            "10x8",
        ),
        ("no codec", {"images": packed(0, jpeg)}, Reason.INVALID_REQUEST, "codec"),
        ("unknown codec", {"images": packed(99, jpeg)}, Reason.INVALID_REQUEST, "codec"),
        ("truncated jpeg", {"images": packed(1, jpeg[: len(jpeg) // 2])}, Reason.INVALID_IMAGE, "'front'"),
        ("truncated raw", {"images": packed(3, b"123")}, Reason.INVALID_IMAGE, "240 bytes"),
        ("no jpeg", {"images": packed(1, b"hello")}, Reason.INVALID_IMAGE, "jpeg"),
        ("png bomb", {"images": packed(2, huge)}, Reason.INVALID_IMAGE, "3000x3000"),
        ("empty image", {"images": packed(1, b"")}, Reason.INVALID_IMAGE, "'front'"),
        ("no sequence", {"sequence": 0}, Reason.INVALID_REQUEST, "sequence"),
        ("negative episode", {"episode": -1}, Reason.INVALID_REQUEST, "episode"),
        ("negative tick", {"tick": -1}, Reason.INVALID_REQUEST, "tick"),
        ("rtc prefix", {"rtc_prefix": pb.RtcPrefix()}, Reason.RTC_UNSUPPORTED, "rtc_prefix"),
        ("unknown session", {"session_id": "nobody"}, Reason.SESSION_UNKNOWN, "'nobody'"),
    ]


def test_a_bad_request_is_refused_and_the_next_good_one_answered(serve: Serve) -> None:
    service = serve()
    session = open_session(service.stub)
    for name, change, reason, word in bad_requests():
        with failing(reason, word):
            service.stub.PredictChunk(observation(session, **change))
            pytest.fail(name)
    assert service.stub.PredictChunk(observation(session)).step_count == CHUNK_SIZE
    assert service.metric("observations_total", outcome="invalid") == len(bad_requests())
    assert service.metric("observations_total", outcome="answered") == 1


def test_a_request_larger_than_the_session_needs_is_refused(serve: Serve) -> None:
    stub = serve().stub
    session = open_session(stub)
    assert session.max_request_bytes == HEIGHT * WIDTH * 3 + limits.OVERHEAD_BYTES
    with failing(Reason.INVALID_REQUEST, str(session.max_request_bytes)):
        stub.PredictChunk(observation(session, task="x" * session.max_request_bytes))


def test_a_message_larger_than_any_session_needs_does_not_get_in(serve: Serve) -> None:
    stub = serve().stub
    session = open_session(stub)
    with pytest.raises(grpc.RpcError) as caught:
        stub.PredictChunk(observation(session, task="x" * limits.MAX_REQUEST_BYTES))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stub.PredictChunk(observation(session)).step_count == CHUNK_SIZE


def test_a_policy_that_raises_once_answers_the_next_time(
    serve: Serve, loader: FakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    """LeRobot's server answers empty, counts the step as done, and the robot never moves again."""
    service = serve()
    session = open_session(service.stub)
    loader.policies["policy"].faults = ["raise"]
    with failing(Reason.POLICY_FAILED) as caught:
        service.stub.PredictChunk(observation(session))
    identifier = caught[0].metadata["id"]
    assert identifier in caught[0].message
    assert SECRET not in caught[0].message
    logged = caplog.text
    assert f"id {identifier}" in logged
    assert SECRET in logged
    assert "Traceback" in logged
    assert service.stub.PredictChunk(observation(session, sequence=2)).step_count == CHUNK_SIZE
    assert service.metric("observations_total", outcome="failed") == 1
    assert service.metric("errors_total", reason="POLICY_FAILED") == 1


def test_a_policy_that_always_raises_fails_each_call_and_leaves_the_service_well(
    serve: Serve, loader: FakeLoader
) -> None:
    service = serve()
    session = open_session(service.stub)
    loader.policies["policy"].always = "raise"
    identifiers = set()
    for sequence in range(1, 6):
        with failing(Reason.POLICY_FAILED) as caught:
            service.stub.PredictChunk(observation(session, sequence=sequence))
        identifiers.add(caught[0].metadata["id"])
    assert len(identifiers) == 5
    assert service.stub.GetServiceInfo(pb.GetServiceInfoRequest()).session_count == 1


@pytest.mark.parametrize(("fault", "word"), [("nan", "elbow.pos"), ("shape", "shape")])
def test_invalid_actions_never_leave(serve: Serve, loader: FakeLoader, fault: str, word: str) -> None:
    service = serve()
    session = open_session(service.stub)
    loader.policies["policy"].faults = [fault]
    with failing(Reason.POLICY_RETURNED_INVALID, word):
        service.stub.PredictChunk(observation(session))
    assert service.stub.PredictChunk(observation(session, sequence=2)).step_count == CHUNK_SIZE


def test_inference_latency_is_the_least_time_of_an_answer(serve: Serve) -> None:
    stub = serve(inference_latency=0.3).stub
    session = open_session(stub)
    begun = time.monotonic()
    response = stub.PredictChunk(observation(session))
    assert time.monotonic() - begun >= 0.3
    assert response.durations.total_duration.ToNanoseconds() >= 0.29e9
    assert response.durations.predict_duration.ToNanoseconds() < 0.1e9


def test_a_policy_without_state_takes_none(serve: Serve, loader: FakeLoader) -> None:
    loader.spec = fake_spec(state_dim=0)
    stub = serve().stub
    session = open_session(stub, robot=robot())
    assert list(session.state_names) == []
    assert session.action_names == list(JOINTS)
