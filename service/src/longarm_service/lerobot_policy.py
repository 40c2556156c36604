"""LeRobot's policies and processors behind the service's boundary. This module and lerobot_loader import torch."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies import PreTrainedPolicy
from lerobot.policies.rtc import RTCConfig, reanchor_relative_rtc_prefix
from lerobot.policies.utils import populate_queues
from lerobot.processor import NormalizerProcessorStep, RelativeActionsProcessorStep
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from longarm_service.lerobot_frames import FrameInputs, Letterbox
from longarm_service.policy import Fingerprint, Guidance, LoadedPolicy, Observation, Processors
from longarm_wire.rtc import RtcConfig, RtcPrefix
from longarm_wire.specs import PolicySpec

Batch = dict[str, Any]

logger = logging.getLogger(__name__)

# Policies whose predict_action_chunk was read and found to keep the observations of a batch apart. One that took the
# first robot's cameras for all would move the others by them
KEEPS_APART = frozenset({"act", "smolvla", "pi0", "pi05"})


class LerobotProcessors(Processors):
    """The checkpoint's saved pre- and postprocessor, one pair per session.

    A pair has memory: relative actions are decoded against the state that the preprocessor saw last.
    """

    def __init__(
        self,
        preprocessor: Any,
        postprocessor: Any,
        device: torch.device,
        fed_keys: Mapping[str, str],
        action_names: Sequence[str],
        box: Letterbox | None = None,
    ) -> None:
        """Takes loaded pipelines.

        Args:
          preprocessor: PolicyProcessorPipeline that ends on device.
          postprocessor: PolicyProcessorPipeline that ends on the CPU.
          device: Where the policy is.
          fed_keys: From the policy's feature key to the name that the saved rename step expects, where it has one.
          action_names: What the values of an action are called, where preprocessor does not know it.
          box: What the policy begins with.
        """
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor
        self._fed_keys = fed_keys
        self._box = box
        self._frame_inputs = FrameInputs(preprocessor, device)
        steps = preprocessor.steps
        # Stands for the episode of the session: equal to nothing but itself
        self.rollout = object()
        self._normalizer = next((s for s in steps if isinstance(s, NormalizerProcessorStep)), None)
        self._relative = next((s for s in steps if isinstance(s, RelativeActionsProcessorStep) and s.enabled), None)
        if self._relative is not None and self._relative.action_names is None and action_names:
            # Without names it would take joints for relative that it was trained to keep absolute (exclude_joints)
            self._relative.action_names = list(action_names)

    def usual_state(self, state_dim: int) -> np.ndarray:
        """Returns the mean of the training data's states where the statistics tell it, else zeros: (state_dim,)."""
        statistics = (self._normalizer.stats or {}).get(OBS_STATE, {}) if self._normalizer is not None else {}
        mean = np.asarray(statistics.get("mean", ()), np.float32)
        return mean if mean.shape == (state_dim,) else np.zeros(state_dim, np.float32)

    def prepare_frame(self, key: str, frame: np.ndarray) -> torch.Tensor:
        """Returns a frame as FrameInputs.begin does."""
        return self._frame_inputs.begin(key, frame)

    def preprocess(self, observation: Observation) -> Batch:
        """Returns the policy's input batch of one, on the device.

        Frames become float32 of shape (1, 3, height, width) and the state (1, state_dim), as LeRobot's own rollout
        feeds its preprocessor, which then does what is not done yet.
        """
        batch: Batch = {"task": observation.task, "robot_type": observation.robot_type}
        if observation.state.size:
            batch[self._fed(OBS_STATE)] = torch.tensor(observation.state).unsqueeze(0)
        # No inference mode: its tensors cannot take part in the gradients that guide real-time chunking
        with torch.no_grad():
            for key, image in observation.images.items():
                batch[self._fed(key)] = self._frame_inputs.finish(image)
            prepared: Batch = dict(self._preprocessor(batch))
            if self._box is not None:
                # The policy does just this, and then nothing more: here it makes all cameras of all robots alike, for
                # batches and for what is compiled
                prepared |= {key: self._box.fill(prepared[key]) for key in observation.images}
            return prepared

    def postprocess(self, chunk: torch.Tensor) -> np.ndarray:
        """Returns robot-space actions, float32 of shape (steps, action_dim), of a chunk of shape (1, steps, dim).

        The whole chunk goes through at once. For elementwise steps that equals LeRobot's step-by-step result, and
        steps that decode a chunk as a whole (relative actions, GR00T) need it so.
        """
        with torch.inference_mode():
            actions = self._postprocessor(chunk)
            return np.ascontiguousarray(actions.squeeze(0).to("cpu", torch.float32).numpy())

    def anchored(self, prefix: RtcPrefix) -> np.ndarray:
        """Returns prefix in model space; see Processors.anchored.

        Relative actions were relative to the state of an older observation. LeRobot's own function makes them relative
        to the state that the preprocessor saw last.
        """
        state = self._relative.get_cached_state() if self._relative is not None else None
        if state is None:
            return prefix.model_actions
        anchored = reanchor_relative_rtc_prefix(
            torch.tensor(prefix.robot_actions), state, self._relative, self._normalizer, "cpu"
        )
        return np.asarray(anchored, np.float32)

    def in_model_space(self, chunk: torch.Tensor) -> np.ndarray:
        """Returns a copy of a chunk of shape (1, steps, dim); see Processors.in_model_space."""
        # A copy, since the postprocessor may write into the chunk
        return np.array(chunk.detach().squeeze(0).to("cpu", torch.float32).numpy())

    def reset(self) -> None:
        """Resets every step of both pipelines."""
        self.rollout = object()
        self._preprocessor.reset()
        self._postprocessor.reset()

    def _fed(self, key: str) -> str:
        return self._fed_keys.get(key, key)


class Model:
    """The forward pass of one policy."""

    def __init__(
        self,
        policy: PreTrainedPolicy,
        autocast: torch.dtype | None = None,
        compiled: bool = False,
        amp: torch.dtype | None = None,
    ) -> None:
        """Takes a policy on its device, in evaluation mode.

        Args:
          policy: Any LeRobot policy with predict_action_chunk.
          autocast: Type to compute in where torch holds it safe; set when weights were cast.
          compiled: Whether to compile on the first prediction.
          amp: The same for whole weights, since the policy says use_amp. LeRobot's real-time chunking ignores it.
        """
        self._policy = policy
        self._autocast = autocast
        self._amp = amp
        self._rollout: object = None
        self.device = torch.device(str(policy.config.device))
        self._forward = torch.compile(policy.predict_action_chunk) if compiled else policy.predict_action_chunk
        queues = getattr(policy, "_queues", None) or {}
        self._needs_queues = bool(set(queues) - {ACTION})
        # Compiled anew for each size of a batch, in the middle of a run
        self.takes_batches = policy.name in KEEPS_APART and not compiled

    @property
    def supports_rtc(self) -> bool:
        """Whether the policy says that it can do real-time chunking, and takes the arguments."""
        claim = getattr(self._policy, "supports_rtc", None)
        if not callable(claim) or not claim():
            return False
        try:
            inspect.signature(self._policy.predict_action_chunk).bind({}, inference_delay=0, prev_chunk_left_over=None)
        except TypeError:
            return False
        return True

    def turn_to(self, rollout: object) -> None:
        """Resets the policy if what comes next belongs to another rollout than what came last."""
        if rollout is not self._rollout:
            self._policy.reset()
            self._rollout = rollout

    def predict(self, batch: Batch, guidance: Guidance | None = None) -> torch.Tensor:
        """Returns the chunk in model space, float32 of shape (1, steps, dim), once it is ready."""
        if self._needs_queues:
            batch = self._queued(batch)
        if guidance is None:
            with torch.inference_mode(), self._computing(self._autocast or self._amp):
                chunk = self._forward(batch).float()
        else:
            chunk = self._guided(batch, guidance).float()
        # Without this the wait would be booked on whatever touches the chunk next
        if chunk.is_cuda:
            torch.cuda.synchronize(chunk.device)
        return chunk if chunk.ndim == 3 else chunk.unsqueeze(0)

    def predict_batch(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Returns the chunk of each of several observations of equal shape_of, each of shape (1, steps, dim)."""
        chunks = self.predict(_collated(batches))
        if len(chunks) != len(batches):
            raise ValueError(f"Expected {len(batches)} chunks of a batch, found {len(chunks)}")
        return [chunks[i : i + 1] for i in range(len(batches))]

    def _guided(self, batch: Batch, guidance: Guidance) -> torch.Tensor:
        """Predicts with real-time chunking, never compiled: each delay would be compiled anew."""
        prefix = None
        if guidance.prefix is not None and len(guidance.prefix):
            # LeRobot's engine also fills a short prefix up with zeros, towards which the policy is then guided
            prefix = torch.tensor(guidance.prefix[: guidance.config.execution_horizon], device=self.device)
        with torch.no_grad(), self._computing(self._autocast), self._set_to(guidance.config):
            chunk: torch.Tensor = self._policy.predict_action_chunk(
                batch, inference_delay=guidance.delay_ticks, prev_chunk_left_over=prefix
            )
        return chunk

    @contextlib.contextmanager
    def _set_to(self, config: RtcConfig) -> Iterator[None]:
        """Sets the policy to one session's settings for one prediction: LeRobot keeps them on the policy."""
        own = getattr(self._policy.config, "rtc_config", None)
        self._configure(
            RTCConfig(
                execution_horizon=config.execution_horizon,
                max_guidance_weight=config.max_guidance_weight,
                prefix_attention_schedule=RTCAttentionSchedule(config.prefix_attention_schedule.value),
            )
        )
        try:
            yield
        finally:
            self._configure(own)

    def _configure(self, config: RTCConfig | None) -> None:
        self._policy.config.rtc_config = config
        # As LeRobot's rollout does. A policy without it, such as groot, reads its configuration each time
        if hasattr(self._policy, "init_rtc_processor"):
            self._policy.init_rtc_processor()

    def _computing(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
        if dtype is None:
            return contextlib.nullcontext()
        computing: contextlib.AbstractContextManager[Any] = torch.autocast(self.device.type, dtype)
        return computing

    def _queued(self, batch: Batch) -> Batch:
        """Fills the queues that select_action would have filled, with this observation alone.

        Such policies come here only with n_obs_steps 1. The queues are emptied first, so nothing of another session
        or of the last chunk is left in them.
        """
        self._policy.reset()
        # LeRobot's processors leave an empty action in, for which there is a queue as well
        batch = {key: value for key, value in batch.items() if key != ACTION}
        images = list(self._policy.config.image_features)
        if images:
            batch[OBS_IMAGES] = torch.stack([batch[key] for key in images], dim=-4)
        populate_queues(self._policy._queues, batch)
        return batch


@dataclass(frozen=True)
class LerobotPolicy(LoadedPolicy):
    """A loaded LeRobot policy."""

    spec: PolicySpec
    fingerprint: Fingerprint
    saved_renames: Mapping[str, str]
    model: Model
    make_processors: Callable[[Sequence[str]], LerobotProcessors]

    def open_processors(self, action_names: Sequence[str] = ()) -> LerobotProcessors:
        """Returns the checkpoint's processors, read anew from its files."""
        return self.make_processors(action_names)

    def turn_to(self, processors: LerobotProcessors) -> None:
        """Resets the policy, for those that remember: LeRobot does so at the start of each episode."""
        self.model.turn_to(processors.rollout)

    def predict(self, prepared: Batch, guidance: Guidance | None = None) -> torch.Tensor:
        """Returns the chunk in model space; see Model.predict."""
        return self.model.predict(prepared, guidance)

    @property
    def takes_batches(self) -> bool:
        """Whether the model's forward pass keeps the observations of a batch apart."""
        return self.model.takes_batches

    def predict_batch(self, prepared: Sequence[Batch]) -> list[torch.Tensor]:
        """Returns the chunk of each; see Model.predict_batch."""
        return self.model.predict_batch(prepared)

    def works(self) -> bool:
        """Returns whether the device still computes: after some errors CUDA refuses everything in this process."""
        try:
            return bool(torch.ones(1, device=self.model.device).add(1).item() == 2)
        except Exception:  # of which classes depends on torch's version
            logger.exception("%s does not compute any more", self.model.device)
            return False

    def shape_of(self, prepared: Batch) -> Hashable:
        """Returns the shapes of tensors, and the values of what is neither tensor nor list."""
        return tuple((key, _shape(value)) for key, value in sorted(prepared.items()))


def _shape(value: object) -> Hashable:
    if isinstance(value, torch.Tensor):
        # Only what has a first dimension of one observation can be stacked along it
        return (tuple(value.shape), value.dtype) if value.ndim and len(value) == 1 else object()
    return "list" if isinstance(value, list) else repr(value)


def _collated(batches: Sequence[Batch]) -> Batch:
    """Returns batches of one observation each as one batch."""
    collated = dict(batches[0])
    for key, value in collated.items():
        if isinstance(value, torch.Tensor):
            collated[key] = torch.cat([batch[key] for batch in batches])
        elif isinstance(value, list):
            collated[key] = [item for batch in batches for item in batch[key]]
    return collated
