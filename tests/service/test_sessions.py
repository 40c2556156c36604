"""Opening, closing and forgetting sessions."""

import asyncio
import base64
import string
import threading
import time
from pathlib import Path
from urllib.parse import quote

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
    Clock,
    FakeLoader,
    FakeProcessors,
    RunningService,
    failing,
    fake_spec,
    observation,
    open_session,
    opening,
    robot,
)

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import failures
from longarm_service.app import Service, StartupError
from longarm_service.server import is_allowed
from longarm_service.sessions import composed_renames
from longarm_service.settings import ServiceSettings
from longarm_wire.errors import Reason
from longarm_wire.specs import CameraSpec, RobotSpec

IMAGES = "observation.images."


def test_describes_what_was_agreed(serve: Serve) -> None:
    session = open_session(serve(session_idle_timeout=12.5).stub)
    assert session.fingerprint.policy_type == "fake"
    assert session.fingerprint.pretrained_name_or_path == "policy"
    assert session.fingerprint.digest
    assert tuple(session.action_names) == tuple(session.state_names) == JOINTS
    assert [(c.name, c.height, c.width) for c in session.cameras] == [("front", HEIGHT, WIDTH)]
    assert session.chunk_size == CHUNK_SIZE
    assert not session.supports_rtc
    assert session.idle_timeout.ToMilliseconds() == 12500
    assert len(session.session_id) >= 20


def test_tells_how_far_the_load_is(serve: Serve) -> None:
    *news, last = serve().stub.OpenSession(opening())
    stages = [event.progress.stage for event in news]
    assert stages[-2:] == [pb.PROGRESS_STAGE_LOADING, pb.PROGRESS_STAGE_WARMING_UP]
    assert news[-2].progress.fraction == 0.5
    assert last.HasField("session")


def test_two_robots_that_want_one_policy_wait_for_one_load(serve: Serve, loader: FakeLoader) -> None:
    stub = serve().stub
    loader.gate.clear()
    first = stub.OpenSession(opening())
    loader.wait_until_loading()
    second = stub.OpenSession(opening())
    # The second learns at once what the first was told
    event = next(second)
    assert event.progress.message == "Loading policy"
    loader.gate.set()
    ids = {[*events][-1].session.session_id for events in (first, second)}
    assert len(ids) == 2
    assert len(loader.loads) == 1


def test_answers_while_a_policy_loads(serve: Serve, loader: FakeLoader) -> None:
    service = serve()
    session = open_session(service.stub)
    loader.gate.clear()
    slow = service.stub.OpenSession(opening("another"))
    loader.wait_until_loading()
    loader.wait_until_loading()
    assert service.stub.PredictChunk(observation(session), timeout=PATIENCE_SECONDS).step_count
    info = service.stub.GetServiceInfo(pb.GetServiceInfoRequest(), timeout=PATIENCE_SECONDS)
    assert [policy.pretrained_name_or_path for policy in info.loaded_policies] == ["policy"]
    loader.gate.set()
    assert [*slow][-1].HasField("session")


def test_a_robot_that_gives_up_leaves_the_load_to_the_others(serve: Serve, loader: FakeLoader) -> None:
    service = serve()
    loader.gate.clear()
    first, second = service.stub.OpenSession(opening()), service.stub.OpenSession(opening())
    for events in (first, second):
        next(events)
    loader.wait_until_loading()
    first.cancel()
    loader.gate.set()
    assert [*second][-1].HasField("session")
    assert len(loader.loads) == 1


def test_device_and_dtype_of_the_service_are_what_an_empty_request_means(serve: Serve, loader: FakeLoader) -> None:
    stub = serve().stub
    open_session(stub)
    open_session(stub, device="cpu")
    open_session(stub, dtype="bfloat16")
    assert [(choice.device, choice.dtype) for choice in loader.loads] == [("cpu", ""), ("cpu", "bfloat16")]


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("nowhere", Reason.POLICY_NOT_FOUND, "nowhere"),
        ("bad one", Reason.POLICY_LOAD_FAILED, "bad one"),
        ("", Reason.INVALID_REQUEST, "pretrained_name_or_path"),
    ],
)
def test_a_policy_that_does_not_load_is_said_so(serve: Serve, name: str, reason: Reason, words: str) -> None:
    service = serve()
    with failing(reason, words):
        open_session(service.stub, name)
    assert open_session(service.stub).session_id
    assert service.metric("errors_total", reason=reason.value) == 1


def test_a_fault_of_ours_travels_as_an_id(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with failing(Reason.INTERNAL, "OpenSession failed: RuntimeError") as caught:
        open_session(serve().stub, "bug")
    assert SECRET not in caught[0].message
    assert caught[0].metadata["id"] in caplog.text
    assert SECRET in caplog.text


def test_another_type_than_expected_is_a_mismatch(serve: Serve) -> None:
    stub = serve().stub
    assert open_session(stub, policy_type="fake").session_id
    with failing(Reason.SPEC_MISMATCH, "'act'", "'fake'"):
        open_session(stub, policy_type="act")


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        (
            {"cameras": [pb.CameraSpec(name="frnt", height=1, width=1)]},
            Reason.SPEC_MISMATCH,
            ['rename_map={"observation.images.frnt": "observation.images.front"}'],
        ),
        ({"cameras": []}, Reason.SPEC_MISMATCH, ["observation.images.front"]),
        ({"action_names": JOINTS[:2]}, Reason.SPEC_MISMATCH, ["3 action values", "takes 2"]),
        ({"state_names": JOINTS[:2]}, Reason.SPEC_MISMATCH, ["3 state values", "has 2"]),
        ({"action_names": [*JOINTS[:2], JOINTS[0]]}, Reason.INVALID_REQUEST, ["distinct"]),
        ({"fps": 0.0}, Reason.INVALID_REQUEST, ["fps"]),
    ],
)
def test_a_robot_that_does_not_fit_learns_what_to_change(
    serve: Serve, changes: dict[str, object], reason: Reason, words: list[str]
) -> None:
    with failing(reason, *words):
        open_session(serve().stub, robot=robot(**changes))


def test_joints_in_another_order_are_refused_where_the_policy_knows_names(serve: Serve, loader: FakeLoader) -> None:
    loader.spec = fake_spec(action_names=JOINTS)
    with failing(Reason.SPEC_MISMATCH, "another order"):
        open_session(serve().stub, robot=robot(action_names=JOINTS[::-1]))


def test_a_message_of_any_length_arrives(serve: Serve, loader: FakeLoader) -> None:
    """It travels in headers, and gRPC drops a call whose headers are too long: the robot would see no reason at all."""
    cameras = [pb.CameraSpec(name=f"camera_{i:04}_{'x' * 110}", height=1, width=1) for i in range(16)]
    with failing(Reason.SPEC_MISMATCH, "camera_0000") as caught:
        open_session(serve().stub, robot=robot(cameras=cameras))
    assert 1900 <= len(caught[0].message) <= 2100


@pytest.mark.parametrize("letter", ["前", "é", "%", "\n", "\0", "🤖"])
def test_a_message_in_any_language_arrives(serve: Serve, letter: str) -> None:
    """What counts is how many bytes it takes on the way: of a Chinese letter, thirteen."""
    cameras = [pb.CameraSpec(name=letter * 60 + str(i), height=1, width=1) for i in range(16)]
    with failing(Reason.SPEC_MISMATCH, "does not fit the policy") as caught:
        open_session(serve().stub, robot=robot(cameras=cameras))
    assert caught[0].message.endswith("…")
    assert len(caught[0].message) >= 250


@pytest.mark.parametrize("letter", ["a", "前", "%", "🤖", "\udcff"])
@pytest.mark.parametrize("count", [0, 1, 270, 350, 360, 640, 2000, 2020, 100_000])
def test_a_message_is_shortened_to_whole_characters(letter: str, count: int) -> None:
    message = failures.shortened(letter * count)
    data = message.encode()
    assert len(quote(data, safe=string.punctuation.replace("%", ""))) + len(base64.b64encode(data)) < 7000
    if message.endswith("…"):
        assert set(message[:-1]) <= {letter, "?"}
        assert len(message) > 200
    else:
        assert len(message) == count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"robot": robot(action_names=[f"joint {i}" for i in range(257)])}, "at most 256 action names, found 257"),
        ({"robot": robot(state_names=[f"joint {i}" for i in range(9999)])}, "at most 256 state names, found 9999"),
        ({"robot": robot(cameras=[pb.CameraSpec(name=str(i)) for i in range(17)])}, "at most 16 cameras, found 17"),
        ({"robot": robot(action_names=["x" * 129])}, "action names of at most 128 characters, found 129"),
        ({"robot": robot(cameras=[pb.CameraSpec(name="x" * 129)])}, "cameras of at most 128 characters, found 129"),
        ({"robot": robot(robot_type="x" * 129)}, "at most 128 characters"),
        ({"rename_map": {str(i): "" for i in range(17)}}, "at most 16 entries, found 17"),
        ({"rename_map": {"x" * 200: ""}}, "entries of rename_map of at most 128 characters"),
        ({"rename_map": {"": "x" * 200}}, "entries of rename_map of at most 128 characters"),
        ({"task": "x" * 4097}, "task of at most 4096 characters"),
        ({"name": "x" * 4097}, "pretrained_name_or_path of at most 4096 characters"),
        ({"revision": "x" * 257}, "revision"),
        ({"policy_type": "x" * 257}, "policy_type"),
        ({"device": "x" * 257}, "device"),
        ({"dtype": "x" * 257}, "dtype"),
    ],
)
def test_what_a_robot_states_is_bounded(
    serve: Serve, loader: FakeLoader, changes: dict[str, object], words: str
) -> None:
    """Names are compared with each other: 42 KB of them took ten seconds, in which no robot was answered."""
    with failing(Reason.INVALID_REQUEST, words):
        open_session(serve().stub, **changes)
    assert loader.loads == []


def test_a_rename_map_is_applied(serve: Serve) -> None:
    cameras = [pb.CameraSpec(name="top", height=480, width=640)]
    renames = {f"{IMAGES}top": f"{IMAGES}front"}
    session = open_session(serve().stub, robot=robot(cameras=cameras), rename_map=renames)
    assert [camera.name for camera in session.cameras] == ["top"]


def test_a_checkpoint_keeps_the_rename_map_it_was_trained_with(serve: Serve, loader: FakeLoader) -> None:
    """LeRobot's server replaces it by nothing, and the policy then misses its cameras."""
    loader.saved_renames = {f"{IMAGES}top": f"{IMAGES}front"}
    stub = serve().stub
    for camera in ("top", "front"):
        session = open_session(stub, robot=robot(cameras=[pb.CameraSpec(name=camera, height=48, width=64)]))
        assert [c.name for c in session.cameras] == [camera]


@pytest.mark.parametrize(
    ("saved", "asked", "cameras", "expected"),
    [
        ({}, {}, ["a"], {}),
        ({"a": "x"}, {}, ["a"], {"a": "x"}),
        ({"a": "x"}, {}, ["b"], {}),
        ({"a": "x"}, {"a": "y"}, ["a"], {"a": "y"}),
        ({"a": "x"}, {"b": "x"}, ["a", "b"], {"b": "x"}),
        ({"a": "x"}, {}, ["a", "x"], {}),
        ({"a": "x", "b": "y"}, {"c": "y"}, ["a", "b", "c"], {"a": "x", "c": "y"}),
        # Names that change places
        ({"a": "b", "b": "a"}, {}, ["a", "b"], {"a": "b", "b": "a"}),
        ({"a": "b", "b": "c"}, {}, ["a", "b"], {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {}, ["a", "b", "c"], {}),
        ({"a": "b", "b": "a"}, {"a": "a"}, ["a", "b"], {"a": "a"}),
        ({"a": "b"}, {"b": "c"}, ["a", "b"], {"a": "b", "b": "c"}),
        ({"a": "a"}, {}, ["a"], {}),
    ],
)
def test_what_a_robot_asks_for_goes_over_what_the_checkpoint_saved(
    saved: dict[str, str], asked: dict[str, str], cameras: list[str], expected: dict[str, str]
) -> None:
    def full(renames: dict[str, str]) -> dict[str, str]:
        return {IMAGES + old: IMAGES + new for old, new in renames.items()}

    spec = RobotSpec("arm", JOINTS, JOINTS, tuple(CameraSpec(name, 1, 1) for name in cameras), 30.0)
    assert composed_renames(full(saved), full(asked), spec) == full(expected)


def test_only_allowed_policies_are_loaded(serve: Serve, loader: FakeLoader) -> None:
    stub = serve(allowed_policies=("lab/*",), preload=("house",)).stub
    assert open_session(stub, "lab/act").session_id
    assert open_session(stub, "house").session_id
    with failing(Reason.POLICY_NOT_ALLOWED, "'someone/else'", "lab/*"):
        open_session(stub, "someone/else")
    assert [choice.pretrained_name_or_path for choice in loader.loads] == ["house", "lab/act"]


@pytest.mark.parametrize(
    ("patterns", "revision", "allowed"),
    [
        (("lab/act",), "", True),
        (("lab/*",), "main", True),
        # Anybody may open a pull request on the hub, and its commits can be asked for by their hash
        (("lab/act",), "refs/pr/7", False),
        (("lab/*",), "0123456789" * 4, False),
        (("lab/act@v1",), "v1", True),
        (("lab/act@v1",), "v2", False),
        (("lab/act@v1",), "", False),
        (("lab/act@v*", "lab/act"), "", True),
        (("lab/*@*",), "refs/pr/7", True),
        (("*",), "v1", False),
    ],
)
def test_a_revision_is_allowed_by_a_pattern_of_its_own(
    serve: Serve, loader: FakeLoader, patterns: tuple[str, ...], revision: str, allowed: bool
) -> None:
    stub = serve(allowed_policies=patterns).stub
    if allowed:
        assert open_session(stub, "lab/act", revision=revision).session_id
        return
    with failing(Reason.POLICY_NOT_ALLOWED, "'lab/act'", f"'{revision}'" if revision else "", patterns[0]):
        open_session(stub, "lab/act", revision=revision)
    assert loader.loads == []


def test_a_revision_in_the_name_is_no_way_around(serve: Serve, loader: FakeLoader) -> None:
    stub = serve(allowed_policies=("lab/*", "house@v1")).stub
    for name in ("house@v1@main", "house", "lab@v1/act"):
        with failing(Reason.POLICY_NOT_ALLOWED):
            open_session(stub, name)
    assert loader.loads == []


def test_a_directory_is_allowed_by_where_it_lies(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    inside, outside = root / "models" / "act", root / "private"
    for directory in (inside, outside):
        directory.mkdir(parents=True)
    link = root / "models" / "link"
    link.symlink_to(outside)
    patterns = (f"{root}/models/*",)
    assert is_allowed(str(inside), patterns)
    assert not is_allowed(f"{root}/models/../private", patterns)
    assert not is_allowed(str(link), patterns)


def test_a_relative_directory_is_allowed_by_a_relative_pattern(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    directory = Path("outputs/act")
    directory.mkdir(parents=True)
    assert is_allowed(str(directory), ("outputs/*",))
    assert not is_allowed(str(directory), ("models/*",))


def test_there_are_no_more_sessions_than_allowed(serve: Serve) -> None:
    service = serve(max_session_count=2)
    first = open_session(service.stub)
    open_session(service.stub)
    with failing(Reason.TOO_MANY_SESSIONS, "2 sessions"):
        open_session(service.stub)
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=first.session_id))
    assert open_session(service.stub).session_id
    assert service.metric("sessions") == 2


def test_where_there_is_no_room_the_session_idle_for_longest_makes_some(serve: Serve) -> None:
    """Callers that hang up while a session is opened for them, or die, leave it behind, and others were kept out."""
    clock = Clock()
    service = serve(max_session_count=3, clock=clock)
    used = open_session(service.stub)
    for _ in range(2):
        left_behind = service.stub.OpenSession(opening())
        while not next(left_behind).HasField("session"):
            pass
        left_behind.cancel()
    # Those that the service saw hang up are closed at once. Whoever has heard the end is not seen
    while service.stub.GetServiceInfo(pb.GetServiceInfoRequest()).session_count < 3:
        open_session(service.stub)
    clock.now += 29
    stay = service.stub.PredictChunk(observation(used))
    with failing(Reason.TOO_MANY_SESSIONS):
        open_session(service.stub)
    clock.now += 1
    one, other = open_session(service.stub), open_session(service.stub)
    with failing(Reason.TOO_MANY_SESSIONS):
        open_session(service.stub)
    for session in (used, one, other):
        assert service.stub.PredictChunk(observation(session, sequence=stay.sequence + 1)).step_count


def test_a_session_whose_prediction_runs_neither_makes_room_nor_expires(serve: Serve, loader: FakeLoader) -> None:
    """A prediction may take longer than sessions may be idle, and its robot waits for it."""
    clock = Clock()
    service = serve(max_session_count=1, session_idle_timeout=60.0, obs_queue_timeout=1e6, clock=clock)
    session = open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(observation(session))
    policy.wait_until_predicting()
    clock.now += 100
    with failing(Reason.TOO_MANY_SESSIONS):
        open_session(service.stub)
    policy.gate.set()
    assert running.result(PATIENCE_SECONDS).step_count
    # Idle from its answer on
    clock.now += 29
    with failing(Reason.TOO_MANY_SESSIONS):
        open_session(service.stub)
    clock.now += 1
    assert open_session(service.stub).session_id


def test_what_a_session_asked_before_it_was_closed_is_answered(serve: Serve, loader: FakeLoader) -> None:
    """The last session of a policy takes the policy's thread with it."""
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    session = open_session(service.stub)
    policy = loader.policies["policy"]
    policy.gate.clear()
    running = service.stub.PredictChunk.future(observation(session), timeout=PATIENCE_SECONDS)
    policy.wait_until_predicting()
    waiting = service.stub.PredictChunk.future(observation(session, sequence=2), timeout=PATIENCE_SECONDS)
    while service.stub.GetServiceInfo(pb.GetServiceInfoRequest()).waiting_count != 1:
        time.sleep(0.005)
    loader.outdated.add("policy")
    open_session(service.stub)
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    for call in (running, waiting):
        with failing(Reason.SESSION_UNKNOWN, "closed"):
            call.result()
    policy.gate.set()


def test_a_session_closed_while_its_frames_are_decoded_asks_no_policy(
    serve: Serve, loader: FakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its policy may be gone by then, and would get a thread that nobody ends."""
    decoding, closed = threading.Event(), threading.Event()

    def prepare_frame(_: FakeProcessors, _key: str, frame: np.ndarray) -> np.ndarray:
        decoding.set()
        assert closed.wait(PATIENCE_SECONDS)
        return frame

    monkeypatch.setattr(FakeProcessors, "prepare_frame", prepare_frame)
    service = serve(obs_queue_timeout=PATIENCE_SECONDS)
    session = open_session(service.stub)
    policy = loader.policies["policy"]
    call = service.stub.PredictChunk.future(observation(session), timeout=PATIENCE_SECONDS)
    assert decoding.wait(PATIENCE_SECONDS)
    loader.outdated.add("policy")
    open_session(service.stub)
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    closed.set()
    with failing(Reason.SESSION_UNKNOWN, "closed"):
        call.result()
    assert not policy.tasks
    assert not service.service._workers._workers


def test_no_more_sessions_are_being_opened_than_there_may_be(serve: Serve, loader: FakeLoader) -> None:
    service = serve(max_session_count=2)
    loader.gate.clear()
    calls = [service.stub.OpenSession(opening()) for _ in range(2)]
    for call in calls:
        next(call)
    loader.wait_until_loading()
    with failing(Reason.TOO_MANY_SESSIONS, "for 2 robots already"):
        open_session(service.stub)
    calls[0].cancel()
    loader.gate.set()
    assert [*calls[1]][-1].HasField("session")
    assert open_session(service.stub).session_id


def test_a_closed_session_is_unknown_and_closing_again_succeeds(serve: Serve) -> None:
    stub = serve().stub
    session = open_session(stub)
    for _ in range(2):
        stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    with failing(Reason.SESSION_UNKNOWN):
        stub.PredictChunk(observation(session))
    with failing(Reason.SESSION_UNKNOWN):
        stub.ResetSession(pb.ResetSessionRequest(session_id=session.session_id))


def test_an_idle_session_is_forgotten_and_a_used_one_is_not(serve: Serve) -> None:
    clock = Clock()
    stub = serve(clock=clock, session_idle_timeout=60.0).stub
    used, idle = open_session(stub), open_session(stub)
    clock.now += 40
    stub.PredictChunk(observation(used))
    clock.now += 40
    stub.PredictChunk(observation(used, sequence=2))
    with failing(Reason.SESSION_UNKNOWN, "60 s"):
        stub.PredictChunk(observation(idle))
    assert stub.GetServiceInfo(pb.GetServiceInfoRequest()).session_count == 1


def test_idle_sessions_are_forgotten_while_a_policy_is_loaded_anew(serve: Serve, loader: FakeLoader) -> None:
    """A load takes minutes. Until then they kept memory, and their policies could not make room."""
    clock = Clock()
    service = serve(clock=clock, session_idle_timeout=60.0, preload=("policy",))
    session = open_session(service.stub)
    loader.wait_until_loading()
    loader.gate.clear()
    loader.outdated.add("policy")
    waiting = service.stub.OpenSession(opening())
    loader.wait_until_loading()
    # Housekeeping waits for the load by now
    (entry,) = service.service._shelf._entries.values()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while entry.use_count < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    clock.now += 60
    while service.metric("sessions"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    loader.gate.set()
    assert [*waiting][-1].session.session_id != session.session_id


def loaded(service: RunningService) -> list[str]:
    info = service.stub.GetServiceInfo(pb.GetServiceInfoRequest())
    return sorted(policy.pretrained_name_or_path for policy in info.loaded_policies)


def test_the_policy_unused_for_longest_makes_room(serve: Serve) -> None:
    service = serve(max_loaded_policies=2)
    for name in ("one", "two", "one"):
        session = open_session(service.stub, name)
        service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    open_session(service.stub, "three")
    assert loaded(service) == ["one", "three"]
    assert service.metric("policies_loaded") == 2


def test_a_policy_in_use_never_makes_room(serve: Serve, loader: FakeLoader) -> None:
    service = serve(max_loaded_policies=1)
    session = open_session(service.stub, "one")
    with failing(Reason.TOO_MANY_SESSIONS, "max_loaded_policies"):
        open_session(service.stub, "two")
    assert service.stub.PredictChunk(observation(session)).step_count
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    open_session(service.stub, "two")
    assert loaded(service) == ["two"]


def test_a_load_that_nobody_waits_for_makes_room(serve: Serve, loader: FakeLoader) -> None:
    """Else whoever asks and hangs up keeps the others out."""
    service = serve(max_loaded_policies=1)
    loader.gate.clear()
    call = service.stub.OpenSession(opening("one"))
    loader.wait_until_loading()
    with failing(Reason.TOO_MANY_SESSIONS):
        open_session(service.stub, "two")
    call.cancel()
    (entry,) = service.service._shelf._entries.values()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while entry.use_count and time.monotonic() < deadline:
        time.sleep(0.01)
    # Refused at once, or let in now
    threading.Timer(0.5, loader.gate.set).start()
    open_session(service.stub, "two")
    assert loaded(service) == ["two"]
    assert service.metric("policies_loaded") == 1


def test_a_preloaded_policy_never_makes_room(serve: Serve, loader: FakeLoader) -> None:
    """Else anybody could have the robots that come next wait for a load."""
    service = serve(max_loaded_policies=2, preload=("house",))
    for name in ("one", "two"):
        session = open_session(service.stub, name)
        service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    assert loaded(service) == ["house", "two"]
    # Nor when it changed on disk
    loader.outdated.add("house")
    session = open_session(service.stub, "house")
    service.stub.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    open_session(service.stub, "three")
    assert loaded(service) == ["house", "three"]


def test_more_to_preload_than_may_be_loaded_is_a_startup_error(loader: FakeLoader) -> None:
    settings = ServiceSettings(port=0, metrics_port=0, max_loaded_policies=1, preload=("house", "garden"))

    async def start() -> None:
        async with Service(settings, lambda: loader) as service:
            await service.prepare()

    with pytest.raises(StartupError, match="max_loaded_policies"):
        asyncio.run(start())


def test_a_revision_may_be_preloaded(serve: Serve, loader: FakeLoader) -> None:
    stub = serve(preload=("lab/act@v1",)).stub
    assert open_session(stub, "lab/act", revision="v1").session_id
    assert [(choice.pretrained_name_or_path, choice.revision) for choice in loader.loads] == [("lab/act", "v1")]


def test_one_policy_is_loaded_once_however_it_is_spelled(
    serve: Serve, loader: FakeLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "act").mkdir()
    (tmp_path / "link").symlink_to("act")
    monkeypatch.chdir(tmp_path)
    stub = serve(preload=("act/",)).stub
    real = str(tmp_path / "act")
    for name in (
        real,
        f"{real}/",
        f"{real}//",
        f"{tmp_path}/./act",
        f"{tmp_path}/link/../act",
        f"{tmp_path}/link",
        "act",
    ):
        session = open_session(stub, name)
        assert session.fingerprint.pretrained_name_or_path == real
    assert [choice.pretrained_name_or_path for choice in loader.loads] == [real]


def test_one_commit_is_loaded_once_however_it_is_named(serve: Serve, loader: FakeLoader) -> None:
    stub = serve().stub
    for revision in ("", "main", "", FakeLoader.COMMIT):
        assert open_session(stub, "lab/act", revision=revision).fingerprint.revision == FakeLoader.COMMIT
    assert len(loader.loads) == 1
    open_session(stub, "lab/other", revision=FakeLoader.COMMIT)
    open_session(stub, "lab/act", revision="another")
    open_session(stub, "lab/act", revision=FakeLoader.COMMIT, dtype="bfloat16")
    assert len(loader.loads) == 4


def test_failed_openings_use_nothing_up(serve: Serve) -> None:
    """A lease that leaked would keep its policy in memory until the service ends."""
    service = serve(max_loaded_policies=1)
    with failing(Reason.SPEC_MISMATCH):
        open_session(service.stub, "one", policy_type="act")
    with failing(Reason.POLICY_LOAD_FAILED):
        open_session(service.stub, "bad")
    open_session(service.stub, "two")
    assert loaded(service) == ["two"]


def test_a_policy_that_changed_on_disk_is_loaded_again(serve: Serve, loader: FakeLoader) -> None:
    """Training again into the same directory must not leave robots on the old policy."""
    stub = serve().stub
    old = open_session(stub)
    loader.outdated.add("policy")
    new = open_session(stub)
    assert old.fingerprint.digest != new.fingerprint.digest
    # The robot that runs keeps what it began with
    assert stub.PredictChunk(observation(old)).step_count
    assert len(loader.loads) == 2
