"""Real-time chunking: the queue that LeRobot's own local engine makes, made over the network instead."""

import copy
import importlib
import shutil
import sys
import threading
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lerobot
import numpy as np
import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies import make_pre_post_processors
from lerobot.policies.rtc import RTCConfig as LerobotRtcConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.processor import AbsoluteActionsProcessorStep, RelativeActionsProcessorStep
from tests.service.checkpoints import preprocessed
from tests.service.conftest import Serve
from tests.service.fakes import FakeLoader, failing, fake_spec, observation, open_session, robot

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_edge.action_queue import ActionChunk, ActionQueue
from longarm_edge.policy_client import PolicyChoice as ClientChoice
from longarm_edge.policy_client import PolicyClient
from longarm_edge.robot import RobotReading
from longarm_edge.rtc import RealTimeChunking
from longarm_service.lerobot_loader import LerobotLoader
from longarm_service.lerobot_policy import LerobotPolicy
from longarm_service.policy import Guidance, Observation, PolicyChoice
from longarm_wire.errors import Reason, WireError
from longarm_wire.images import Codec
from longarm_wire.rtc import PrefixAttentionSchedule, RtcConfig, RtcPrefix
from longarm_wire.specs import CameraSpec, RobotSpec

JOINTS = (*(f"joint_{i}.pos" for i in range(5)), "gripper.pos")
CAMERAS = ("front", "wrist")
# What the policy scales frames to by itself: they travel whole, and equality is to the bit
HEIGHT, WIDTH = 24, 32
FPS = 30.0
TASK = "put the cube in the cup"


def spec_of(cameras: Sequence[str]) -> RobotSpec:
    return RobotSpec("test_arm", JOINTS, JOINTS, tuple(CameraSpec(c, HEIGHT, WIDTH) for c in cameras), FPS)


SPEC = spec_of(CAMERAS)
# Ticks that pass in each prediction; none in the first, for the arm does not move before the first chunk
DELAYS = (0, 3, 5, 2, 7, 1)
QUEUE_THRESHOLD = 12


def reading(number: int, cameras: Sequence[str] = CAMERAS) -> RobotReading:
    random = np.random.default_rng(number)
    frames = {name: random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for name in cameras}
    return RobotReading(random.normal(0, 20, len(JOINTS)).astype(np.float32), frames)


def lerobot_engine() -> Any:
    """LeRobot's RTC engine, unmodified. The package around it wants libraries for recording, which it does not use."""
    try:
        importlib.import_module("lerobot.rollout")
    except ImportError:
        package = types.ModuleType("lerobot.rollout")
        package.__path__ = [str(Path(lerobot.__file__).parent / "rollout")]
        sys.modules["lerobot.rollout"] = package
    import lerobot.rollout.inference.rtc as engine

    return engine


@dataclass
class LocalChunk:
    """One prediction of LeRobot's engine: the delay it expected, and its queue after the merge."""

    expected_delay: int
    actions: np.ndarray
    model_actions: np.ndarray


def run_locally(
    checkpoint: Path, config: RtcConfig, cameras: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> list[LocalChunk]:
    """Runs LeRobot's engine on its own thread, with a clock that says that each prediction took its DELAYS."""
    module = lerobot_engine()
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        module, "time", SimpleNamespace(perf_counter=lambda: clock.now, sleep=lambda _: time.sleep(0.001))
    )
    settings = LerobotRtcConfig(
        execution_horizon=config.execution_horizon,
        max_guidance_weight=config.max_guidance_weight,
        prefix_attention_schedule=RTCAttentionSchedule[config.prefix_attention_schedule.value],
    )
    policy = SmolVLAPolicy.from_pretrained(checkpoint)
    policy.config.rtc_config = settings
    policy.init_rtc_processor()
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)}
    }
    for name in cameras:
        features[f"observation.images.{name}"] = {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": None}
    engine = module.RTCInferenceEngine(
        policy,
        preprocessor,
        postprocessor,
        robot_wrapper=SimpleNamespace(robot_type="test_arm", action_features=dict.fromkeys(JOINTS, float)),
        rtc_config=settings,
        hw_features=features,
        task=TASK,
        fps=FPS,
        device="cpu",
        rtc_queue_threshold=QUEUE_THRESHOLD,
    )
    expected: list[int] = []
    chunks: list[LocalChunk] = []
    merged = threading.Semaphore(0)
    predict = policy.predict_action_chunk

    def timed_predict(batch: Any, *, inference_delay: int, prev_chunk_left_over: Any) -> torch.Tensor:
        torch.manual_seed(len(chunks))
        actions: torch.Tensor = predict(
            batch, inference_delay=inference_delay, prev_chunk_left_over=prev_chunk_left_over
        )
        delay = DELAYS[len(chunks)]
        for _ in range(delay):
            engine.get_action(None)
        clock.now += max(0.0, delay - 0.5) / FPS
        expected.append(inference_delay)
        return actions

    monkeypatch.setattr(policy, "predict_action_chunk", timed_predict)
    engine.start()
    queue = engine.action_queue
    merge = queue.merge

    def watched_merge(*args: Any) -> None:
        merge(*args)
        chunks.append(LocalChunk(expected[-1], queue.queue.numpy().copy(), queue.original_queue.numpy().copy()))
        merged.release()

    queue.merge = watched_merge
    for number in range(len(DELAYS)):
        seen = reading(number, cameras)
        engine.notify_observation({**dict(zip(JOINTS, seen.state, strict=True)), **seen.images})
        if number == 0:
            engine.resume()
        while number and queue.qsize() > QUEUE_THRESHOLD:
            engine.get_action(None)
        assert merged.acquire(timeout=30), engine.failed
    engine.stop()
    return chunks


def run_over_the_wire(
    address: str, checkpoint: Path, config: RtcConfig, cameras: Sequence[str], expected: Sequence[int]
) -> list[LocalChunk]:
    """Does the same with Longarm's own parts: client, service, prefix and action queue."""
    queue = ActionQueue(max_action_age=1e9)
    rtc = RealTimeChunking(config, FPS)
    chunks = []
    with PolicyClient(address, Codec.RAW, 90) as client:
        masked = tuple(f"observation.images.{name}" for name in CAMERAS if name not in cameras)
        choice = ClientChoice(str(checkpoint), task=TASK, rtc=config, masked_cameras=masked)
        session = client.open_session(choice, spec_of(cameras), timeout=60)
        for number, delay in enumerate(DELAYS):
            outlook = queue.outlook()
            prefix = rtc.prefix(outlook.coming, max(0.0, expected[number] - 0.5) / FPS)
            torch.manual_seed(number)
            reply, _, _ = client.predict(
                session, reading(number, cameras), episode=0, tick=outlook.step, timeout=30, rtc_prefix=prefix
            )
            for _ in range(delay):
                queue.take(0.0)
            queue.merge(ActionChunk(0, 0, reply.sequence, reply.tick, 0.0, reply.actions, reply.model_actions), 0.0)
            coming = queue.outlook().coming
            models = [action.model_values for action in coming if action.model_values is not None]
            chunks.append(LocalChunk(expected[number], np.stack([a.values for a in coming]), np.stack(models)))
            while queue.depth() > QUEUE_THRESHOLD:
                queue.take(0.0)
    return chunks


def relative(checkpoint: Path, target: Path) -> Path:
    """Returns a copy of the checkpoint whose actions, but for the gripper's, are relative to the state."""
    directory = Path(shutil.copytree(checkpoint, target))
    policy = SmolVLAPolicy.from_pretrained(directory)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(directory))
    step = RelativeActionsProcessorStep(enabled=True, exclude_joints=["gripper"], action_names=list(JOINTS))
    preprocessor.steps = [step, *preprocessor.steps]
    postprocessor.steps = [*postprocessor.steps, AbsoluteActionsProcessorStep(enabled=True, relative_step=step)]
    preprocessor.save_pretrained(directory)
    postprocessor.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("schedule", PrefixAttentionSchedule)
@pytest.mark.parametrize(("kind", "cameras"), [("absolute", CAMERAS), ("relative", CAMERAS), ("relative", CAMERAS[:1])])
def test_the_queue_is_that_of_lerobots_own_engine(
    serve: Serve,
    smolvla_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: PrefixAttentionSchedule,
    kind: str,
    cameras: Sequence[str],
) -> None:
    """Same observations, delays and seeds: each queue of a local run, over the network, in both spaces.

    Also of a robot without one of the policy's cameras, whose place is masked.
    """
    checkpoint = smolvla_checkpoint if kind == "absolute" else relative(smolvla_checkpoint, tmp_path / "relative")
    config = RtcConfig(execution_horizon=8, max_guidance_weight=5.0, prefix_attention_schedule=schedule)
    local = run_locally(checkpoint, config, cameras, monkeypatch)
    assert [chunk.expected_delay for chunk in local] == [0, 0, 3, 5, 5, 7]
    service = serve(lambda: LerobotLoader("cpu"), obs_queue_timeout=30.0).service
    remote = run_over_the_wire(
        f"127.0.0.1:{service.port}", checkpoint, config, cameras, [chunk.expected_delay for chunk in local]
    )
    for mine, theirs in zip(remote, local, strict=True):
        np.testing.assert_array_equal(mine.model_actions, theirs.model_actions)
        np.testing.assert_array_equal(mine.actions, theirs.actions)


@pytest.fixture(scope="module")
def smolvla(smolvla_checkpoint: Path) -> LerobotPolicy:
    return LerobotLoader("cpu").load(PolicyChoice(str(smolvla_checkpoint)), lambda _: None)


def some_observation(number: int) -> Observation:
    seen = reading(number)
    return Observation(seen.state, {f"observation.images.{c}": f for c, f in seen.images.items()}, TASK, "test_arm")


def predict(policy: LerobotPolicy, guidance: Guidance | None, seed: int = 0) -> np.ndarray:
    """The model-space chunk for one and the same observation."""
    processors = policy.open_processors()
    torch.manual_seed(seed)
    return processors.in_model_space(policy.predict(preprocessed(processors, some_observation(0)), guidance))


def guidance_of(steps: int, delay: int = 2, seed: int = 7, **settings: Any) -> Guidance:
    prefix = np.random.default_rng(seed).normal(size=(steps, len(JOINTS))).astype(np.float32)
    return Guidance(RtcConfig(**settings), delay, prefix)


def test_plain_smolvla_answers_what_lerobot_answers(serve: Serve, smolvla_checkpoint: Path) -> None:
    policy = SmolVLAPolicy.from_pretrained(smolvla_checkpoint)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(smolvla_checkpoint))
    address = f"127.0.0.1:{serve(lambda: LerobotLoader('cpu'), obs_queue_timeout=30.0).service.port}"
    with PolicyClient(address, Codec.RAW, 90) as client:
        session = client.open_session(ClientChoice(str(smolvla_checkpoint), task=TASK), SPEC, timeout=60)
        for number in range(3):
            torch.manual_seed(number)
            reply, _, _ = client.predict(session, reading(number), episode=0, tick=0, timeout=30)
            seen = reading(number)
            batch: dict[str, Any] = {"observation.state": torch.from_numpy(seen.state)[None], "task": [TASK]}
            for name, frame in seen.images.items():
                batch[f"observation.images.{name}"] = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
            torch.manual_seed(number)
            expected = postprocessor(policy.predict_action_chunk(preprocessor(batch)))[0]
            np.testing.assert_array_equal(reply.actions, expected.numpy())
            assert reply.model_actions is None


def test_sessions_that_share_a_policy_keep_their_settings(smolvla: LerobotPolicy) -> None:
    """LeRobot keeps these settings on the policy: what one robot sets must never reach another's prediction."""
    guidances = [
        guidance_of(8, execution_horizon=8, prefix_attention_schedule=PrefixAttentionSchedule.ONES),
        None,
        guidance_of(8, execution_horizon=3, prefix_attention_schedule=PrefixAttentionSchedule.ZEROS),
        guidance_of(8, execution_horizon=8, max_guidance_weight=0.5),
        Guidance(RtcConfig()),
    ]
    alone = [predict(smolvla, guidance) for guidance in guidances]
    for one in range(4):
        for other in range(one):
            assert not np.allclose(alone[one], alone[other]), (one, other)
    np.testing.assert_array_equal(alone[4], alone[1])
    for order in ((3, 1, 0, 2), (2, 1, 3, 1), (0, 0, 1, 3)):
        for number in order:
            np.testing.assert_array_equal(predict(smolvla, guidances[number]), alone[number])
    assert smolvla.model._policy.config.rtc_config is None


def test_settings_are_taken_back_when_a_prediction_fails(smolvla: LerobotPolicy) -> None:
    plain = predict(smolvla, None)
    wide = Guidance(RtcConfig(), 0, np.zeros((4, 99), np.float32))
    with pytest.raises(RuntimeError, match="99"):
        predict(smolvla, wide)
    np.testing.assert_array_equal(predict(smolvla, None), plain)
    assert smolvla.model._policy.config.rtc_config is None


def test_a_short_prefix_guides_towards_itself_and_not_towards_zero(smolvla: LerobotPolicy) -> None:
    """LeRobot's engine fills a prefix up to the horizon with zeros: a nearly empty queue then pulls the arm to the mean
    pose of the training data."""
    config = RtcConfig(execution_horizon=10, prefix_attention_schedule=PrefixAttentionSchedule.ONES)
    short = guidance_of(3).prefix
    assert short is not None
    filled = np.concatenate([short, np.zeros((7, len(JOINTS)), np.float32)])
    plain, mine, theirs = (predict(smolvla, g) for g in (None, Guidance(config, 2, short), Guidance(config, 2, filled)))
    assert np.abs(mine[:3] - short).mean() < 0.5 * np.abs(plain[:3] - short).mean(), "it follows what there is"
    assert np.abs(theirs[3:10]).mean() < 0.5 * np.abs(plain[3:10]).mean(), "else this test shows nothing"
    assert np.abs(mine[3:10]).mean() > 0.8 * np.abs(plain[3:10]).mean()


def test_an_empty_prefix_guides_nothing(smolvla: LerobotPolicy) -> None:
    np.testing.assert_array_equal(predict(smolvla, guidance_of(0)), predict(smolvla, None))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_guides_a_policy_whose_weights_were_cast(smolvla_checkpoint: Path, dtype: str) -> None:
    policy = LerobotLoader("cpu").load(PolicyChoice(str(smolvla_checkpoint), dtype=dtype), lambda _: None)
    assert policy.spec.supports_rtc
    guidance = guidance_of(10, delay=10)
    assert guidance.prefix is not None
    guided = predict(policy, guidance)
    assert (
        np.abs(guided[:10] - guidance.prefix).mean() < 0.5 * np.abs(predict(policy, None)[:10] - guidance.prefix).mean()
    )


def no_number(*_: Any, x_t: torch.Tensor, **__: Any) -> torch.Tensor:
    return torch.full_like(x_t, torch.nan)


def only_continuous(*_: Any, **__: Any) -> None:
    raise ValueError("only for continuous inference")


@pytest.mark.parametrize(
    ("cannot", "words"), [(only_continuous, "only for continuous inference"), (no_number, "NaN or infinity")]
)
def test_a_policy_that_only_claims_to_do_it_is_served_without(
    smolvla_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cannot: Any,
    words: str,
) -> None:
    monkeypatch.setattr("lerobot.policies.rtc.RTCProcessor.denoise_step", cannot)
    policy = LerobotLoader("cpu").load(PolicyChoice(str(smolvla_checkpoint)), lambda _: None)
    assert not policy.spec.supports_rtc
    assert predict(policy, None).shape == (20, len(JOINTS))
    assert words in caplog.text


def test_a_policy_that_cannot_do_it_is_refused_with_what_to_set(serve: Serve, act_checkpoint: Path) -> None:
    address = f"127.0.0.1:{serve(lambda: LerobotLoader('cpu')).service.port}"
    names = tuple(f"joint_{i}.pos" for i in range(6))
    arm = RobotSpec("test_arm", names, names, SPEC.cameras, FPS)
    with PolicyClient(address, Codec.RAW, 90) as client:
        with pytest.raises(WireError, match="aggregate_fn_name=latest_only") as caught:
            client.open_session(ClientChoice(str(act_checkpoint), rtc=RtcConfig()), arm, timeout=60)
        assert caught.value.reason is Reason.RTC_UNSUPPORTED
        assert "'act'" in caught.value.message
        assert client.open_session(ClientChoice(str(act_checkpoint)), arm, timeout=60).chunk_size == 12


@pytest.fixture
def rtc_loader(loader: FakeLoader) -> FakeLoader:
    loader.spec = fake_spec(supports_rtc=True, model_action_dim=3)
    return loader


def test_a_session_with_it_gets_model_space_actions(serve: Serve, rtc_loader: FakeLoader) -> None:
    stub = serve().stub
    session = open_session(stub, rtc=RtcConfig(execution_horizon=4).to_proto(), actions_per_chunk=2)
    assert (session.supports_rtc, session.model_action_dim) == (True, 3)
    first = stub.PredictChunk(observation(session))
    model = np.frombuffer(first.model_actions, np.float32).reshape(first.step_count, 3)
    np.testing.assert_array_equal(model, [[0, 0, 0], [1, 1, 1]])
    prefix = RtcPrefix(5, model + 1, model + 2)
    stub.PredictChunk(observation(session, rtc_prefix=prefix.to_proto()))
    stub.PredictChunk(observation(session, rtc_prefix=pb.RtcPrefix(delay_tick_count=9)))
    unguided, guided, empty = rtc_loader.policies["policy"].guidances
    assert unguided is not None
    assert (unguided.config.execution_horizon, unguided.delay_ticks, unguided.prefix) == (4, 0, None)
    assert guided is not None
    assert guided.delay_ticks == 5
    np.testing.assert_array_equal(guided.prefix, model + 1)
    assert empty is not None
    assert empty.prefix is None


def test_a_session_without_it_beside_one_with_it(serve: Serve, rtc_loader: FakeLoader) -> None:
    stub = serve().stub
    with_rtc = open_session(stub, rtc=RtcConfig().to_proto())
    without = open_session(stub)
    stub.PredictChunk(observation(with_rtc))
    assert stub.PredictChunk(observation(without)).model_actions == b""
    assert rtc_loader.policies["policy"].guidances[1] is None
    with failing(Reason.RTC_UNSUPPORTED, "open it with rtc"):
        stub.PredictChunk(observation(without, rtc_prefix=pb.RtcPrefix()))


NONSENSE = [
    ({"step_count": -1}, "-1 steps"),
    ({"delay_tick_count": -1}, "delay of -1"),
    ({"step_count": 6, "model_actions": bytes(72), "robot_actions": bytes(72)}, "6 steps"),
    ({"step_count": 2, "model_actions": bytes(20), "robot_actions": bytes(24)}, "model_actions"),
    ({"step_count": 2, "model_actions": bytes(24), "robot_actions": bytes(20)}, "robot_actions"),
    ({"step_count": 1, "model_actions": np.full(3, np.nan, "<f4").tobytes(), "robot_actions": bytes(12)}, "NaN"),
]


@pytest.mark.parametrize(("fields", "words"), NONSENSE)
def test_a_prefix_of_nonsense_is_refused(
    serve: Serve, rtc_loader: FakeLoader, fields: dict[str, Any], words: str
) -> None:
    stub = serve().stub
    session = open_session(stub, rtc=RtcConfig().to_proto())
    with failing(Reason.INVALID_REQUEST, words):
        stub.PredictChunk(observation(session, rtc_prefix=pb.RtcPrefix(**fields)))
    assert stub.PredictChunk(observation(session)).step_count == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"execution_horizon": 0}, "execution_horizon"),
        ({"max_guidance_weight": 0.0}, "max_guidance_weight"),
        ({"max_guidance_weight": float("nan")}, "max_guidance_weight"),
        ({"prefix_attention_schedule": "linear"}, "ZEROS, ONES, LINEAR, EXP"),
    ],
)
def test_settings_of_nonsense_are_refused(
    serve: Serve, rtc_loader: FakeLoader, changes: dict[str, Any], words: str
) -> None:
    message = copy.deepcopy(RtcConfig().to_proto())
    for name, value in changes.items():
        setattr(message, name, value)
    with failing(Reason.INVALID_REQUEST, words):
        open_session(serve().stub, rtc=message, robot=robot())


def test_settings_have_lerobots_names_and_defaults() -> None:
    theirs = LerobotRtcConfig()
    assert RtcConfig() == RtcConfig(
        theirs.execution_horizon, theirs.max_guidance_weight, PrefixAttentionSchedule(theirs.prefix_attention_schedule)
    )
    assert {s.value for s in PrefixAttentionSchedule} == {s.value for s in RTCAttentionSchedule}
    assert RtcConfig.from_proto(RtcConfig(7, 2.5, PrefixAttentionSchedule.EXP).to_proto()) == RtcConfig(
        7, 2.5, PrefixAttentionSchedule.EXP
    )
