"""Loads LeRobot checkpoints: checks that the service can run them rightly, builds them, warms them up."""

import logging
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies import get_policy_class
from lerobot.processor import ProcessorStepRegistry
from lerobot.utils.constants import OBS_STATE
from lerobot.utils.import_utils import register_third_party_plugins

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm_service import checkpoint as checkpoints
from longarm_service import inspection, lerobot_trust
from longarm_service.base_models import missing_base_model
from longarm_service.checkpoint import POSTPROCESSOR, PREPROCESSOR, Checkpoint
from longarm_service.lerobot_base_models import without_base_weights
from longarm_service.lerobot_frames import letterbox
from longarm_service.lerobot_pipelines import Pipelines
from longarm_service.lerobot_policy import LerobotPolicy, LerobotProcessors, Model
from longarm_service.lerobot_weights import load_whole
from longarm_service.policy import (
    DeviceMemory,
    Fingerprint,
    Guidance,
    Observation,
    PolicyChoice,
    PolicyLoader,
    Report,
    ServedPolicy,
    is_directory,
)
from longarm_wire.errors import Reason, WireError
from longarm_wire.rtc import RtcConfig
from longarm_wire.specs import PolicySpec

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The first prediction takes one-off work (kernels, caches, compilation), the second shows the time that stays
WARM_UP_PREDICTIONS = 2
# One of these is there where there is a GPU: NVIDIA, AMD, or either under Windows
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
RENAME_STEP = "rename_observations_processor"

# Policies whose predict_action_chunk is wrong or impossible when called once per chunk by several robots
UNSUPPORTED = {
    "gaussian_actor": "it gives single actions, no chunks",
    "lingbot_va": "it continues a video of everything executed since its last chunk, which requests do not carry",
    "tdmpc": "it plans each step from its plan of the step before, which chunks from a far service break",
}
# Policies whose forward pass was read and found to do without a camera that is not there: its place is masked
MASKS_MISSING_CAMERAS = frozenset({"pi0", "pi05", "pi0_fast", "smolvla", "xvla"})


class LerobotLoader(PolicyLoader):
    """Loads any LeRobot policy with predict_action_chunk, plugins included."""

    def __init__(
        self,
        device: str = "auto",
        dtype: str = "",
        compiled: bool = False,
        torch_threads: int = 0,
        trusted: Collection[str] = (),
    ) -> None:
        """Finds the default device and registers LeRobot's third-party policies.

        Args:
          device: "auto", or as torch names it.
          dtype: Default type to cast weights to; empty for none.
          compiled: Whether to compile policies.
          torch_threads: Threads on the CPU; 0 for torch's choice.
          trusted: Policies that may run code which they name; see the setting trusted_policies.

        Raises:
          WireError: INVALID_REQUEST; the device is not there.
        """
        if torch_threads:
            torch.set_num_threads(torch_threads)
        register_third_party_plugins()
        lerobot_trust.refuse_remote_code()
        self.device = _best_device() if device == "auto" else _checked_device(device)
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else ""
        self.library_versions = {name: version(name) for name in ("lerobot", "torch")}
        self.dtype = dtype
        self._compiled = compiled
        self._trusted = frozenset(str(Path(name).resolve()) if is_directory(name) else name for name in trusted)

    @property
    def spoiled(self) -> bool:
        """Whether torch calls this a bad fork, and there is a GPU to miss: then torch says that there is none."""
        return torch.cuda._is_in_bad_fork() and any(Path(device).exists() for device in GPU_FILES)

    def load(self, choice: PolicyChoice, report: Report) -> LerobotPolicy:
        """See PolicyLoader.load. What the service would not load is not fetched."""
        device = _checked_device(choice.device or self.device)
        dtype = _checked_dtype(choice.dtype or self.dtype)
        found = self._find(choice, report)
        trusted = found.exact_name in self._trusted
        with (
            checkpoints.as_judged(found) as judged,
            checkpoints.unchanged(found) as digest,
            lerobot_trust.remote_code(trusted),
        ):
            return self._loaded(judged, digest, device, dtype, report)

    def _find(self, choice: PolicyChoice, report: Report) -> Checkpoint:
        def judge(found: Checkpoint) -> None:
            _check_supported(found)
            _check_harmless(found, found.exact_name in self._trusted)

        return checkpoints.find(choice.pretrained_name_or_path, choice.revision, report, judge)

    def _loaded(
        self, found: Checkpoint, digest: str, device: str, dtype: torch.dtype | None, report: Report
    ) -> LerobotPolicy:
        report(pb.Progress(stage=pb.PROGRESS_STAGE_LOADING, message=f"Loading {found.policy_type} onto {device}"))
        config = _attempt(found, "its config.json", lambda: PreTrainedConfig.from_pretrained(found.read_from))
        config.device = device
        # Some policies fetch their base model again unless they know that weights will follow
        config.pretrained_path = found.read_from
        _leave_compiling_to_us(found, config)
        _check_looks_at_the_present(found, config)
        cameras, state_dim = _inputs(found, config)
        model = _attempt(found, "its weights", lambda: self._build(found, config, dtype))
        renames = _saved_renames(found)
        box = letterbox(found.policy_type, config, found.preprocessor.get("steps", []))

        names = getattr(config, "action_feature_names", None)
        fed_keys = {new: old for old, new in renames.items()}
        pipelines = _attempt(found, "its processors", lambda: Pipelines(found, config, model.device))

        def processors_of(pair: tuple[Any, Any], robot_names: Sequence[str]) -> LerobotProcessors:
            return LerobotProcessors(*pair, model.device, fed_keys, names or robot_names, box)

        def make_processors(robot_names: Sequence[str]) -> LerobotProcessors:
            return processors_of(pipelines.copied(), robot_names)

        warmed_up = _attempt(found, "its processors", pipelines.copied)
        processors = processors_of(warmed_up, ())
        usual = Observation(
            # Not zeros: a joint that stood still in training would be far from all that half precision can hold
            state=processors.usual_state(state_dim),
            images={k: processors.prepare_frame(k, np.zeros((*size, 3), np.uint8)) for k, size in cameras.items()},
            task="warm up",
            robot_type="",
        )
        actions = self._warm_up(found, model, processors, usual, report)
        model_action_dim = _guided_action_dim(found, model, processors, usual)
        pipelines.keep_tokenizers(warmed_up)
        return LerobotPolicy(
            spec=PolicySpec(
                policy_type=found.policy_type,
                # Measured and not read from the configuration, where each type of policy has names of its own for it
                action_dim=actions.shape[1],
                chunk_size=actions.shape[0],
                state_dim=state_dim,
                cameras=cameras,
                action_names=tuple(names) if names and len(names) == actions.shape[1] else None,
                supports_rtc=model_action_dim > 0,
                model_action_dim=model_action_dim,
                frame_box=box.size if box is not None else None,
                n_action_steps=min(getattr(config, "n_action_steps", None) or 0, actions.shape[0]),
                temporal_ensemble_coeff=getattr(config, "temporal_ensemble_coeff", None),
                masks_missing_cameras=found.policy_type in MASKS_MISSING_CAMERAS,
            ),
            fingerprint=Fingerprint(found.policy_type, found.name, found.revision, digest),
            saved_renames=renames,
            model=model,
            make_processors=make_processors,
        )

    def is_current(self, policy: ServedPolicy) -> bool:
        """Compares digests of directories. What came from the hub stays what it was."""
        known = policy.fingerprint
        directory = Path(known.pretrained_name_or_path)
        return bool(known.revision) or not directory.is_dir() or checkpoints.digest(directory) == known.digest

    def device_memory(self) -> list[DeviceMemory]:
        """Returns one entry per visible CUDA device that torch has used."""
        if not torch.cuda.is_available() or not torch.cuda.is_initialized():
            return []
        return [
            DeviceMemory(
                device=f"cuda:{index}",
                allocated_bytes=torch.cuda.memory_allocated(index),
                reserved_bytes=torch.cuda.memory_reserved(index),
                total_bytes=torch.cuda.get_device_properties(index).total_memory,
                utilization=_utilization(index),
            )
            for index in range(torch.cuda.device_count())
        ]

    def _build(self, found: Checkpoint, config: PreTrainedConfig, dtype: torch.dtype | None) -> Model:
        with without_base_weights(config):
            policy = load_whole(get_policy_class(found.policy_type), found.read_from, config)
        # Real-time chunking takes gradients with respect to actions; weights would only cost memory
        policy.to(config.device, dtype=dtype).eval().requires_grad_(False)
        # Weights alone are cast: their inputs stay as the processors made them, and autocast joins the two
        return Model(policy, None if dtype is torch.float32 else dtype, self._compiled, _amp(config, dtype))

    def _warm_up(
        self, found: Checkpoint, model: Model, processors: LerobotProcessors, usual: Observation, report: Report
    ) -> np.ndarray:
        stage = pb.PROGRESS_STAGE_COMPILING if self._compiled else pb.PROGRESS_STAGE_WARMING_UP
        for done in range(WARM_UP_PREDICTIONS):
            report(pb.Progress(stage=stage, fraction=done / WARM_UP_PREDICTIONS, message="First predictions"))
            actions = _attempt(
                found,
                "its first prediction",
                lambda: processors.postprocess(model.predict(processors.preprocess(usual))),
            )
            stage = pb.PROGRESS_STAGE_WARMING_UP
        report(pb.Progress(stage=stage, fraction=1.0, message="Ready"))
        if actions.ndim != 2 or not actions.size:
            raise WireError(
                Reason.POLICY_UNSUPPORTED,
                f"Expected {found.policy_type} to give a chunk of shape (steps, action_dim), found {actions.shape}.",
            )
        if bad := np.count_nonzero(~np.isfinite(actions)):
            raise WireError(
                Reason.POLICY_LOAD_FAILED,
                f"The {found.policy_type} checkpoint {found.name!r} does not load: its first prediction has NaN or "
                f"infinity in {bad} of {actions.size} values. Its weights or the statistics of its processors are "
                "broken: copy or download it again, or look at how its training ended.",
            )
        return actions


def _guided_action_dim(found: Checkpoint, model: Model, processors: LerobotProcessors, usual: Observation) -> int:
    """Warms real-time chunking up and returns the values of a model-space action, or 0 if it does not work.

    Its first prediction is slow as well, and would come when the arm moves already.
    """
    if not model.supports_rtc:
        return 0
    try:
        chunk = processors.in_model_space(model.predict(processors.preprocess(usual), Guidance(RtcConfig())))
        followed = model.predict(processors.preprocess(usual), Guidance(RtcConfig(), 1, np.zeros_like(chunk)))
        if not torch.isfinite(followed).all():
            raise ValueError("Its guided prediction has NaN or infinity")
    except Exception:  # whatever LeRobot raises: plain prediction works
        logger.exception("%s says that it can do real-time chunking, and cannot", found.name)
        return 0
    return int(chunk.shape[1])


def _check_supported(found: Checkpoint) -> None:
    kind = found.policy_type
    if kind not in PreTrainedConfig.get_known_choices():
        raise WireError(
            Reason.POLICY_UNSUPPORTED,
            f"{found.name!r} is a policy of type {kind!r}, which LeRobot {version('lerobot')} does not know. Known: "
            f"{', '.join(sorted(PreTrainedConfig.get_known_choices()))}. A plugin named lerobot_policy_... can add it.",
        )
    if kind in UNSUPPORTED:
        raise _unsupported(found, UNSUPPORTED[kind])
    if found.config.get("use_peft"):
        raise _unsupported(found, "it is a PEFT adapter; merge it into its base model (merge_and_unload) and save that")


def _unsupported(found: Checkpoint, reason: str) -> WireError:
    return WireError(
        Reason.POLICY_UNSUPPORTED, f"Cannot serve the {found.policy_type} policy {found.name!r}: {reason}."
    )


def _check_looks_at_the_present(found: Checkpoint, config: PreTrainedConfig) -> None:
    """Refuses policies that look at a history. Where config.json says nothing, LeRobot's default decides."""
    if config.n_obs_steps > 1:
        # One observation a chunk would put the frames of its history a chunk apart, and the answer would be wrong
        frames = f"the last {config.n_obs_steps} frames at the control rate (n_obs_steps)"
        raise _unsupported(found, f"it looks at {frames}, and requests carry one")


def _leave_compiling_to_us(found: Checkpoint, config: PreTrainedConfig) -> None:
    """Takes compile_model back, as LeRobot's rollout does: whether to compile is for whoever runs a policy to say.

    Compiled its own way, a policy would be compiled anew for each size of a batch, and its CUDA graphs belong to the
    thread that warmed it up.
    """
    if getattr(config, "compile_model", False):
        config.compile_model = False
        logger.info("%s says compile_model: the service's own setting (compile) decides instead", found.name)


def _amp(config: PreTrainedConfig, dtype: torch.dtype | None) -> torch.dtype | None:
    """Returns the type for a policy that says use_amp. LeRobot's rollout heeds that on CUDA alone."""
    device = torch.device(str(config.device)).type
    return torch.get_autocast_dtype(device) if config.use_amp and device == "cuda" and dtype is None else None


def _inputs(found: Checkpoint, config: PreTrainedConfig) -> tuple[dict[str, tuple[int, int]], int]:
    """Returns the size of each camera's frames by feature key, and the length of the state."""
    cameras: dict[str, tuple[int, int]] = {}
    state_dim = 0
    for key, feature in (config.input_features or {}).items():
        shape = tuple(feature.shape)
        if feature.type is FeatureType.VISUAL and len(shape) == 3 and shape[0] == 3:
            cameras[key] = (shape[1], shape[2])
        elif feature.type is FeatureType.STATE and key == OBS_STATE and len(shape) == 1:
            state_dim = shape[0]
        elif feature.type is not FeatureType.LANGUAGE:
            raise WireError(
                Reason.POLICY_UNSUPPORTED,
                f"Cannot serve the {found.policy_type} policy {found.name!r}: it looks at {key!r} "
                f"({feature.type.value}, shape {shape}). Requests carry RGB frames and one state of joints.",
            )
    return cameras, state_dim


def _saved_renames(found: Checkpoint) -> dict[str, str]:
    for step in found.preprocessor["steps"]:
        if step.get("registry_name") == RENAME_STEP:
            return dict(step.get("config", {}).get("rename_map") or {})
    return {}


def _check_harmless(found: Checkpoint, trusted: bool) -> None:
    """Raises what inspection does, before LeRobot reads any of the checkpoint's files."""
    inspection.check_configuration(found.config, found.name)
    registered = ProcessorStepRegistry.list()
    for file, content in ((PREPROCESSOR, found.preprocessor), (POSTPROCESSOR, found.postprocessor)):
        inspection.check_processor(content, file, found.name, registered, trusted)


def _attempt[T](found: Checkpoint, what: str, action: Callable[[], T]) -> T:
    """Returns what action returns, or fails with POLICY_LOAD_FAILED that names the checkpoint and the part of it."""
    try:
        return action()
    except WireError:
        raise
    except Exception as error:  # LeRobot, torch and plugins raise what they like
        if refusal := lerobot_trust.cause(error):
            raise WireError(
                Reason.POLICY_NOT_ALLOWED,
                f"The {found.policy_type} checkpoint {found.name!r} wants to run code that it names ({refusal}). Who "
                f"runs the service may allow it with trusted_policies={found.exact_name}",
            ) from error
        logger.exception("Loading %s failed at %s", found.name, what)
        # Our folder is gone by the time that somebody looks
        said = str(error).replace(str(found.read_from), str(found.directory)).strip()
        first_line = (said.splitlines() or [""])[0][:500]
        raise WireError(
            Reason.POLICY_LOAD_FAILED,
            f"The {found.policy_type} checkpoint {found.name!r} does not load: {what}: "
            + (missing_base_model(error, found.config) or f"{type(error).__name__}: {first_line}"),
        ) from error


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked_device(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WireError(
            Reason.INVALID_REQUEST, f"Expected a device such as cuda, cuda:1, mps or cpu, found {name!r}."
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise WireError(
            Reason.INVALID_REQUEST,
            f"The service's machine has no device {name!r} that torch {version('torch')} can use. "
            f"It has {_best_device()}.",
        )
    return name


def _checked_dtype(name: str) -> torch.dtype | None:
    if name and name not in DTYPES:
        raise WireError(Reason.INVALID_REQUEST, f"Expected a dtype of {', '.join(DTYPES)}, found {name!r}.")
    return DTYPES.get(name)


def _utilization(index: int) -> float | None:
    try:
        return float(torch.cuda.utilization(index)) / 100
    except (ModuleNotFoundError, RuntimeError):
        # Needs NVIDIA's management library, which is no dependency of ours
        return None
