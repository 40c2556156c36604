"""Recording rules and alerts. Alerts are few and about symptoms; each has a section in docs/runbook.md."""

from dataclasses import dataclass
from typing import Any, Literal

from deploy.prometheus import thresholds as t

RUNBOOK = "docs/runbook.md"


@dataclass(frozen=True)
class Recording:
    """A query that is worth a name. Named level:metric:operations, where level is the labels that are kept."""

    name: str
    expr: str


@dataclass(frozen=True)
class Alert:
    """Fires while value meets condition, for as long as is given.

    Attributes:
      name: Begins with Longarm.
      severity: critical: the robot does not do its work; warning: it will not soon, or does it badly.
      value: The query. It has data whenever all is well, too.
      condition: What makes it an alert: a comparison.
      lasting: How long before it fires.
      summary: One static line, since it is what alerts are grouped by.
      description: What is measured where, as a template.
    """

    name: str
    severity: Literal["critical", "warning", "info"]
    value: str
    condition: str
    lasting: str
    summary: str
    description: str

    @property
    def expr(self) -> str:
        return f"{self.value} {self.condition}"

    @property
    def runbook(self) -> str:
        return f"{RUNBOOK}#{self.name.lower()}"


TICKS_PER_SECOND = f"instance:longarm_edge_control_ticks:rate{t.WINDOW}"
TICKS_LATE = f"instance:longarm_edge_ticks_late:ratio_rate{t.WINDOW}"
TICKS_WITHOUT_ACTION = f"instance:longarm_edge_ticks_without_action:ratio_rate{t.WINDOW}"
LATENCY = f"instance:longarm_edge_inference_latency_seconds:quantile_rate{t.WINDOW}"
PLAYBACK = f"instance:longarm_edge_playback_seconds:max{t.WINDOW}"
UNANSWERED = f"instance:longarm_edge_observations_unanswered:ratio_rate{t.WINDOW}"
SERVICE_FAULTS = f"instance:longarm_service_faults:increase{t.LONG_WINDOW}"
GPU_MEMORY = "instance_device:longarm_service_gpu_memory_reserved:ratio"

# Observations that were sent and gave the robot nothing, and all that were sent
UNANSWERED_OUTCOMES = "rejected|stale|superseded|failed|lost"
SENT_OUTCOMES = f"answered|{UNANSWERED_OUTCOMES}"
# The service's own faults. The other reasons are the caller's configuration, or pass by themselves
FAULT_REASONS = "POLICY_FAILED|POLICY_RETURNED_INVALID|POLICY_LOAD_FAILED|INTERNAL"


def _observations(outcomes: str) -> str:
    return f'sum without (outcome) (rate(longarm_edge_observations_total{{outcome=~"{outcomes}"}}[{t.WINDOW}]))'


RECORDINGS = (
    Recording(TICKS_PER_SECOND, f"sum without (outcome) (rate(longarm_edge_control_ticks_total[{t.WINDOW}]))"),
    Recording(
        TICKS_LATE,
        f'1 - sum without (le) (rate(longarm_edge_tick_lateness_seconds_bucket{{le="{t.LATE_TICK_SECONDS}"}}'
        f"[{t.WINDOW}])) / rate(longarm_edge_tick_lateness_seconds_count[{t.WINDOW}])",
    ),
    Recording(
        TICKS_WITHOUT_ACTION,
        f'sum without (outcome) (rate(longarm_edge_control_ticks_total{{outcome=~"idle|stale|skipped"}}[{t.WINDOW}]))'
        f" / {TICKS_PER_SECOND}",
    ),
    Recording(
        LATENCY,
        f"histogram_quantile({t.LATENCY_QUANTILE}, rate(longarm_edge_inference_latency_seconds_bucket[{t.WINDOW}]))",
    ),
    # The fullest the queue was, in seconds of this robot's own rate: how long a fresh chunk lasts
    Recording(PLAYBACK, f"max_over_time(longarm_edge_action_queue_depth[{t.WINDOW}]) / {TICKS_PER_SECOND}"),
    Recording(UNANSWERED, f"{_observations(UNANSWERED_OUTCOMES)} / {_observations(SENT_OUTCOMES)}"),
    Recording(
        SERVICE_FAULTS,
        f'sum without (reason) (increase(longarm_service_errors_total{{reason=~"{FAULT_REASONS}"}}[{t.LONG_WINDOW}]))',
    ),
    Recording(GPU_MEMORY, "longarm_service_gpu_memory_reserved_bytes / longarm_service_gpu_memory_total_bytes"),
)

ALERTS = (
    Alert(
        "LongarmRobotStalled",
        "critical",
        # One series whichever of the states it is: changing between them must not start the time anew
        'max without (state) (longarm_edge_link_state{state=~"stalled|reconnecting|failed"})',
        "== 1",
        t.STALLED_FOR,
        "The robot stands still because it has no action to execute.",
        f"Robot {{{{ $labels.robot }}}} ({{{{ $labels.instance }}}}) has had nothing to execute for {t.STALLED_FOR}.",
    ),
    Alert(
        "LongarmTunnelDown",
        "critical",
        # Not tunnel_up == 0: an edge without a tunnel exports that too, and then it is in none of these states
        'max without (state) (longarm_edge_tunnel_state{state=~"connecting|waiting|down|failed"})',
        "== 1",
        t.TUNNEL_DOWN_FOR,
        "The service has not answered through the SSH tunnel.",
        "The tunnel of robot {{ $labels.robot }} ({{ $labels.instance }}) has not been up for "
        f"{t.TUNNEL_DOWN_FOR}. It tries again by itself.",
    ),
    Alert(
        "LongarmTicksLate",
        "warning",
        TICKS_LATE,
        f"> {t.LATE_TICK_RATIO}",
        t.PATIENCE,
        "The control loop does not keep its schedule.",
        "{{ $value | humanizePercentage }} of the ticks of robot {{ $labels.robot }} are more than "
        f"{t.LATE_TICK_SECONDS} s late.",
    ),
    Alert(
        "LongarmLatencyLeavesNoMargin",
        "warning",
        f"{LATENCY} / {PLAYBACK}",
        f"> {t.LATENCY_RATIO}",
        t.PATIENCE,
        "A fresh chunk takes nearly as long to come as the last one lasts.",
        "For robot {{ $labels.robot }} the latency is {{ $value | humanizePercentage }} of what a full queue lasts. "
        "If it is all of it, the robot stands between chunks.",
    ),
    Alert(
        "LongarmObservationsUnanswered",
        "warning",
        UNANSWERED,
        f"> {t.UNANSWERED_RATIO}",
        t.PATIENCE,
        "Observations are sent and give the robot no actions.",
        "{{ $value | humanizePercentage }} of the observations that robot {{ $labels.robot }} sent gave it no action.",
    ),
    Alert(
        "LongarmServiceErrors",
        "warning",
        SERVICE_FAULTS,
        f"> {t.SERVICE_FAULTS}",
        t.AT_ONCE,
        "The policy or the service fails.",
        "The service on {{ $labels.instance }} had {{ $value | humanize }} faults of its own in "
        f"{t.LONG_WINDOW}.",
    ),
    Alert(
        "LongarmGpuMemoryLow",
        "warning",
        GPU_MEMORY,
        f"> {t.GPU_MEMORY_RATIO}",
        t.PATIENCE,
        "The GPU has hardly any memory left.",
        "torch holds {{ $value | humanizePercentage }} of the memory of {{ $labels.device }} on "
        "{{ $labels.instance }}.",
    ),
    Alert(
        "LongarmMetricsMissing",
        "warning",
        'up{job=~"longarm-.*"}',
        "== 0",
        t.METRICS_MISSING_FOR,
        "Prometheus gets no metrics: alerts about this side cannot fire.",
        f"{{{{ $labels.job }}}} at {{{{ $labels.instance }}}} has not answered a scrape for {t.METRICS_MISSING_FOR}.",
    ),
)


def recording_file() -> dict[str, Any]:
    """Returns the recording rules as Prometheus reads them. One group, since some use what others recorded."""
    rules = [{"record": rule.name, "expr": rule.expr} for rule in RECORDINGS]
    return {"groups": [{"name": "longarm-recording", "rules": rules}]}


def alerts_file() -> dict[str, Any]:
    """Returns the alerts as Prometheus reads them."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.description, "runbook": alert.runbook},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "longarm-alerts", "rules": rules}]}
