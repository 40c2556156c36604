"""The examination: every check in the order in which a run would stumble over it, then measurements and advice."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from longarm_edge import __version__, pose_file
from longarm_edge.answers import Session
from longarm_edge.as_configured import remark
from longarm_edge.doctor.advise import NO_IDLE, Packing, recommend
from longarm_edge.doctor.findings import Finding, Steps, Verdict, worst
from longarm_edge.doctor.lerobot_checks import check_calibration, check_cameras, check_port
from longarm_edge.doctor.measure import Measured, measure
from longarm_edge.doctor.predict import Plan, Prediction, predict
from longarm_edge.doctor.tunnel_checks import check_tunnel
from longarm_edge.lerobot_robot import LeRobotRobot, make_robot
from longarm_edge.motion import Motion
from longarm_edge.policy_client import PolicyChoice, PolicyClient, UnreachableError
from longarm_edge.settings import EdgeSettings
from longarm_edge.tunnel.tunnel import Ask
from longarm_wire.errors import Reason, WireError
from longarm_wire.settings import ConfigurationError

logger = logging.getLogger(__name__)

SERVICE_TIMEOUT = 5.0
# A chunk takes long on a first call: weights move, kernels are chosen
PREDICT_TIMEOUT = 30.0


@dataclass
class Examination:
    """Runs the checks. What a failed check makes pointless is reported as skipped, never left out.

    Attributes:
      settings: As for a run.
      robot_flags: LeRobot's own flags.
      ask: Decides about the key of a host that is not known yet; None where nobody is there to ask.
      measured: What was measured, for scripts; filled as it goes.
    """

    settings: EdgeSettings
    robot_flags: Sequence[str]
    ask: Ask | None = None
    measured: dict[str, Any] = field(default_factory=dict)

    def findings(self) -> Iterator[Finding]:
        """Yields each finding as soon as it is known. The robot is read and let go of; its motors are left alone."""
        with ExitStack() as stack:
            robot = yield from self._look_at_configuration()
            robot_answers = robot is not None and (yield from self._look_at_robot(robot, stack))
            client = yield from self._look_at_the_way(stack)
            service_answers = client is not None and (yield from self._look_at_service(client))
            session: Session | None = None
            if client is None or robot is None or not service_answers:
                yield Finding("policy", Verdict.SKIPPED, "needs a robot configuration and a service that answers")
            else:
                session = yield from self._look_at_policy(client, robot, stack)
            if client is None or robot is None or session is None or not robot_answers:
                yield Finding("measurements", Verdict.SKIPPED, "need a robot that answers and an open session")
            else:
                yield from self._measure(client, session, robot)

    def _look_at_configuration(self) -> Steps[LeRobotRobot | None]:
        settings = self.settings
        try:
            robot = make_robot(settings.robot, self.robot_flags, settings.fps)
            Motion.plan(robot, settings.safety)
            if not settings.pretrained_name_or_path:
                raise ConfigurationError(["No policy is named. Pass --pretrained_name_or_path=…"])
        except ConfigurationError as error:
            yield Finding("configuration", Verdict.FAILED, str(error), "See docs/settings.md")
            return None
        found = f"{robot.spec.robot_type} at {settings.fps:g} fps, {settings.pretrained_name_or_path}"
        yield Finding("configuration", Verdict.OK, found)
        return robot

    def _look_at_robot(self, robot: LeRobotRobot, stack: ExitStack) -> Steps[bool]:
        first = [finding for arm in robot.arms for finding in (check_port(arm.config), check_calibration(arm))]
        yield from first
        if worst(first) is Verdict.FAILED:
            yield Finding("robot", Verdict.SKIPPED, "not connected: mend what is above first")
            return False
        path = self.settings.safety.pose_file
        if path is not None and pose_file.is_claimed(path):
            found = f"a run has it, and keeps {path} (safety.pose_file): not connected"
            yield Finding("robot", Verdict.WARNING, found, "Stop that run to have the robot looked at")
            return False
        stack.callback(robot.disconnect, torque=True)
        try:
            robot.connect()
        except ConnectionError as error:
            yield Finding("robot", Verdict.FAILED, str(error), "Is it switched on, and does nothing else use it?")
            return False
        spec = robot.spec
        yield Finding("robot", Verdict.OK, f"{len(spec.action_names)} actions, {len(spec.state_names)} states")
        yield from check_cameras(robot)
        return True

    def _look_at_the_way(self, stack: ExitStack) -> Steps[PolicyClient | None]:
        settings = self.settings
        address, name = settings.server_address, ""
        if settings.ssh.host:
            tunnel = yield from check_tunnel(settings.ssh, settings.connect_timeout, stack, self.ask)
            if tunnel is None:
                yield Finding("service", Verdict.SKIPPED, "there is no way to it")
                return None
            address, name = tunnel.address, tunnel.leads_to
        client = PolicyClient(address, settings.image_codec, settings.jpeg_quality, name=name)
        stack.callback(client.close)
        return client

    def _look_at_service(self, client: PolicyClient) -> Steps[bool]:
        try:
            info = client.service_info(timeout=SERVICE_TIMEOUT)
        except UnreachableError as error:
            fix = f"Start longarm-service there, and see that {client.name} leads to it"
            yield Finding("service", Verdict.FAILED, str(error), fix)
            return False
        except WireError as error:
            yield Finding("service", Verdict.FAILED, str(error), f"Lead {client.name} to a longarm-service")
            return False
        what = f"longarm-service {info.service_version}, LeRobot {info.lerobot_version}, torch {info.torch_version}"
        if info.service_version == __version__:
            yield Finding("service", Verdict.OK, what)
        else:
            fix = "Install the same version on both sides"
            yield Finding("service", Verdict.WARNING, f"{what}; this edge is {__version__}", fix)
        if info.device.startswith("cpu"):
            fix = "A GPU is many times faster. nvidia-smi on the service's machine tells whether it has one"
            yield Finding("device", Verdict.WARNING, "the policy runs on the CPU", fix)
        else:
            yield Finding("device", Verdict.OK, f"{info.device} {info.device_name}".strip())
        return True

    def _look_at_policy(self, client: PolicyClient, robot: LeRobotRobot, stack: ExitStack) -> Steps[Session | None]:
        # The whole chunk, whatever a run would take of it: advice is to know what there is
        choice = replace(PolicyChoice.from_settings(self.settings), actions_per_chunk=0)
        try:
            session = client.open_session(choice, robot.spec, timeout=self.settings.load_timeout)
        except (UnreachableError, WireError) as error:
            mismatch = isinstance(error, WireError) and error.reason is Reason.SPEC_MISMATCH
            yield Finding("names and cameras" if mismatch else "policy", Verdict.FAILED, str(error))
            return None
        stack.callback(client.close_session, session)
        cameras = ", ".join(f"{c.name} {c.width}x{c.height}" for c in session.cameras) or "no camera"
        taken = self._actions_per_chunk(session)
        chunks = f"{session.chunk_size}" if taken == session.chunk_size else f"{session.chunk_size}, {taken} are taken"
        found = f"{session.fingerprint.policy_type}: loads, fits; chunks of {chunks}, sends {cameras}"
        yield Finding("policy", Verdict.OK, found)
        yield from (Finding("note", Verdict.WARNING, note) for note in session.notes)
        if words := remark(session, self.settings):
            yield Finding("chunks", Verdict.OK, words)
        return session

    def _actions_per_chunk(self, session: Session) -> int:
        return min(self.settings.actions_per_chunk or session.chunk_size, session.chunk_size)

    def _measure(self, client: PolicyClient, session: Session, robot: LeRobotRobot) -> Iterator[Finding]:
        settings = self.settings
        packing = Packing(settings.image_codec, settings.jpeg_quality)
        plan = Plan(
            fps=settings.fps,
            actions_per_chunk=self._actions_per_chunk(session),
            replan=settings.replan,
            chunk_size_threshold=settings.chunk_size_threshold,
            max_action_age=settings.safety.max_action_age,
            horizon=settings.rtc.execution_horizon if session.model_action_dim else 0,
        )
        try:
            measured = measure(client, session, robot, packing, plan.horizon, PREDICT_TIMEOUT)
        except (UnreachableError, WireError) as error:
            yield Finding("measurements", Verdict.FAILED, str(error), "See the service's log")
            return
        yield from self._tell(measured, plan, packing, session.chunk_size)

    def _tell(self, measured: Measured, plan: Plan, packing: Packing, chunk_size: int) -> Iterator[Finding]:
        settings, costs = self.settings, measured.costs[packing]
        uplink = "too fast to tell" if costs.uplink == float("inf") else f"{costs.uplink * 8 / 1e6:.1f} Mbit/s up"
        yield Finding("network", Verdict.OK, f"round trip {costs.round_trip * 1000:.1f} ms, {uplink}")
        yield Finding(
            "observation",
            Verdict.OK,
            f"{costs.observation_bytes / 1000:.0f} kB as {packing}; capture "
            f"{costs.capture * 1000:.1f} ms, encode {costs.encode * 1000:.1f} ms",
        )
        yield Finding("chunk", Verdict.OK, f"{measured.chunk_seconds * 1000:.0f} ms on the service")
        prediction = predict(costs, plan)
        yield _predicted(prediction, plan)
        answer = costs.latency - costs.capture - costs.encode
        if answer > settings.request_timeout:
            yield Finding(
                "deadline",
                Verdict.FAILED,
                f"an answer takes {answer:.1f} s and none is waited for longer than "
                f"request_timeout={settings.request_timeout:g} s",
                f"--request_timeout={math.ceil(2 * answer)}",
            )
        period = 1 / plan.fps
        if costs.capture > 0.8 * period:
            yield Finding(
                "capture",
                Verdict.WARNING,
                f"reading the robot takes {costs.capture * 1000:.0f} ms of a period of {period * 1000:.0f} ms",
                "Smaller camera frames, or fewer cameras: ticks will be late while the robot is read",
            )
        advice = recommend(plan, measured.costs, packing, chunk_size)
        yield Finding("advice", Verdict.OK, advice.why, " ".join(advice.flags))
        self.measured = {
            "costs": asdict(costs),
            "prediction": asdict(prediction),
            "recommendation": {"flags": advice.flags, "why": advice.why, "prediction": asdict(advice.prediction)},
        }


def _predicted(prediction: Prediction, plan: Plan) -> Finding:
    latency = f"observation to action {prediction.latency * 1000:.0f} ms"
    if not math.isfinite(prediction.age_max):
        limit = f"safety.max_action_age={plan.max_action_age:g} s"
        return Finding("prediction", Verdict.FAILED, f"{latency}, longer than {limit}: the arm never moves")
    lasts = plan.actions_per_chunk / plan.fps
    stands = f"; a chunk lasts {lasts * 1000:.0f} ms: the arm stands until the next comes"
    return Finding(
        "prediction",
        Verdict.WARNING if prediction.idle_share > NO_IDLE else Verdict.OK,
        f"{latency}, idle ticks {prediction.idle_share:.1%}, "
        f"action age {prediction.age_mean * 1000:.0f} ms on average, {prediction.age_max * 1000:.0f} ms at most, "
        f"{prediction.uplink_bytes_per_second * 8 / 1e6:.2f} Mbit/s up"
        f"{stands if prediction.latency >= lasts else ''}",
    )
