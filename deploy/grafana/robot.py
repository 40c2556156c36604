"""The dashboard of one robot: does it do what the policy says, and if not, which part of the way is slow or gone."""

from deploy.grafana.build import (
    Query,
    Variable,
    board,
    graph,
    increases,
    means,
    name,
    number,
    quantiles,
    rates,
    slow,
    states,
)
from deploy.prometheus import rules
from deploy.prometheus import thresholds as t
from grafana_foundation_sdk.builders.dashboard import Dashboard

ROBOT = 'robot="$robot"'

LINK_COLORS = {
    "connecting": "blue",
    "streaming": "green",
    "degraded": "yellow",
    "slow": "light-orange",
    "stalled": "red",
    "reconnecting": "orange",
    "failed": "dark-red",
}
TUNNEL_COLORS = {
    "connecting": "blue",
    "waiting": "yellow",
    "up": "green",
    "down": "red",
    "failed": "dark-red",
    "closed": "gray",
}


def dashboard() -> Dashboard:
    """Returns the dashboard."""
    rows = {
        "At a glance": [
            number(
                "Ticks without an action",
                "percentunit",
                "Share of ticks for which the robot had nothing to execute. Good: 0 after an episode's first second.",
                Query(f"{rules.TICKS_WITHOUT_ACTION}{{{ROBOT}}}", "without action"),
                bad=t.IDLE_TICK_RATIO,
            ),
            number(
                "Late ticks",
                "percentunit",
                f"Share of ticks more than {t.LATE_TICK_SECONDS} s late. Good: 0, or nearly so on a busy laptop.",
                Query(f"{rules.TICKS_LATE}{{{ROBOT}}}", "late"),
                bad=t.LATE_TICK_RATIO,
            ),
            number(
                "Latency of what the queue lasts",
                "percentunit",
                "Latency, as a share of the time that a fresh chunk lasts. Good: below a half. At 100 % the robot "
                "stands between chunks.",
                Query(f"{rules.LATENCY}{{{ROBOT}}} / {rules.PLAYBACK}{{{ROBOT}}}", "used"),
                bad=t.LATENCY_RATIO,
            ),
            number(
                "Observations without an answer",
                "percentunit",
                "Share of the observations sent that gave the robot no action. Good: 0.",
                Query(f"{rules.UNANSWERED}{{{ROBOT}}}", "unanswered"),
                bad=t.UNANSWERED_RATIO,
            ),
            name(
                "Version",
                "What the edge runs. Good: the same as the service's.",
                Query(f"longarm_edge_build_info{{{ROBOT}}}", "{{version}}"),
            ),
        ],
        "Motion": [
            states(
                "Link",
                "How the link to the policy stands. Good: streaming. Degraded for moments is what the queue is for. "
                "Slow: the arm stands between chunks.",
                "longarm_edge_link_state",
                ROBOT,
                LINK_COLORS,
            ),
            graph(
                "Action queue",
                "suffix: actions",
                "Actions that are coming. Good: a saw-tooth that never touches 0.",
                Query(f"longarm_edge_action_queue_depth{{{ROBOT}}}", "depth"),
            ),
            graph(
                "Age of executed actions",
                "s",
                "Time since the observation behind an action: behind its newest part, and the mean of all its parts "
                "where chunks are blended. Good: steady, and the lower the better the robot reacts. Actions older than "
                "max_action_age are not executed.",
                *quantiles("longarm_edge_action_age_seconds", ROBOT, 0.5, t.LATENCY_QUANTILE),
                means("longarm_edge_action_mean_age_seconds", ROBOT),
            ),
            graph(
                "Steps of commands",
                "suffix: units",
                "How far the fastest joint goes in a tick, robot units, p95: within chunks, where one takes over from "
                "another (switch), and after a standstill (start). Good: the same at switches as within.",
                slow("longarm_edge_command_step", ROBOT, "where"),
            ),
            graph(
                "Behind its command",
                "suffix: units",
                "How far a joint is seen from where it was sent, robot units. Good: steady. A servo always lags; one "
                "that lags more and more is overloaded or blocked.",
                *quantiles("longarm_edge_command_lag", ROBOT, 0.5, t.LATENCY_QUANTILE),
            ),
            graph(
                "Jerk",
                "suffix: units/s³",
                "Root mean square jerk of the commands over seconds. Good: low and steady. What shakes has much of it.",
                Query(f"longarm_edge_command_jerk{{{ROBOT}}}", "jerk"),
            ),
        ],
        "Control loop": [
            graph(
                "Tick lateness",
                "s",
                "How long after it was due a command went out. Good: p99 below 2 ms. A period is lost at 1/fps.",
                *quantiles("longarm_edge_tick_lateness_seconds", ROBOT, 0.5, 0.99),
            ),
            graph(
                "Control ticks",
                "suffix: ticks/s",
                "Ticks by how they ended; together they are the fps. Good: action only. Clamped: the guard changed it.",
                rates("longarm_edge_control_ticks_total", ROBOT, "outcome"),
                stacked=True,
            ),
            graph(
                "Actions never executed",
                "suffix: actions/s",
                "Actions that were dropped, by reason. Good: steady. Some are late in every chunk, and a fresh chunk "
                "takes the place of the rest of the old one.",
                rates("longarm_edge_actions_dropped_total", ROBOT, "reason"),
            ),
        ],
        "Observations": [
            graph(
                "Observation FPS",
                "suffix: /s",
                "Observations sent per second, as the edge counts them. Good: one per chunk with replan=auto; many "
                "with replan=continuous; few while the arm stands still.",
                Query(f"longarm_edge_observation_fps{{{ROBOT}}}", "sent"),
            ),
            graph(
                "Sent and filtered",
                "suffix: /s",
                "Observations sent, and those not sent, by reason. Good: filtered only while nothing moves.",
                Query(f"rate(longarm_edge_observations_sent_total{{{ROBOT}}}[$__rate_interval])", "sent"),
                Query(
                    f"rate(longarm_edge_observations_filtered_total{{{ROBOT}}}[$__rate_interval])",
                    "filtered: {{reason}}",
                ),
            ),
            graph(
                "How observations ended",
                "suffix: /s",
                "Good: answered and filtered only. The runbook says what each of the others means.",
                rates("longarm_edge_observations_total", ROBOT, "outcome"),
                stacked=True,
            ),
        ],
        "Latency": [
            graph(
                "From capture to merged chunk",
                "s",
                "Good: steady, and well below the time that a chunk lasts.",
                *quantiles("longarm_edge_inference_latency_seconds", ROBOT, 0.5, t.LATENCY_QUANTILE, 0.99),
            ),
            graph(
                "Mean by stage",
                "s",
                "Where the time goes; the stages add up to the whole. Good: server_predict is the largest. A large "
                "network share is the link's: see the tunnel's round trip, and send smaller frames.",
                means("longarm_edge_stage_duration_seconds", ROBOT, "stage"),
                stacked=True,
            ),
            graph(
                "Slow ones by stage",
                "s",
                f"The {t.LATENCY_QUANTILE:.0%} quantile of each stage: which one is slow at times? Good: close to the "
                "mean.",
                slow("longarm_edge_stage_duration_seconds", ROBOT, "stage"),
            ),
        ],
        "Tunnel": [
            states(
                "Tunnel",
                "Good: up. Waiting: SSH stands and the service does not answer. Empty without a tunnel.",
                "longarm_edge_tunnel_state",
                ROBOT,
                TUNNEL_COLORS,
            ),
            graph(
                "Tunnel up",
                "short",
                "1 while the service answers through the tunnel. Good: 1. Without a tunnel always 0.",
                Query(f"longarm_edge_tunnel_up{{{ROBOT}}}", "up"),
            ),
            graph(
                "Round trip",
                "s",
                "A health check through the tunnel: what the network and SSH cost by themselves. Good: steady; what "
                "doctor measured.",
                *quantiles("longarm_edge_tunnel_round_trip_seconds", ROBOT, 0.5, t.LATENCY_QUANTILE),
            ),
        ],
        "Lost and found again": [
            graph(
                "Links lost",
                "short",
                "SSH connections that stood and were lost, by why. Good: none.",
                increases("longarm_edge_tunnel_reconnects_total", ROBOT, "reason"),
            ),
            graph(
                "Attempts to connect",
                "short",
                "Attempts to connect, and those that failed, by the step that did. Good: one attempt, at the start.",
                Query(f"increase(longarm_edge_tunnel_connect_attempts_total{{{ROBOT}}}[$__rate_interval])", "attempts"),
                Query(
                    f"increase(longarm_edge_tunnel_connect_failures_total{{{ROBOT}}}[$__rate_interval])",
                    "failed: {{reason}}",
                ),
            ),
            graph(
                "Sessions opened anew",
                "short",
                "Good: none. session_unknown: the service restarted. unreachable: the network was away.",
                increases("longarm_edge_reconnects_total", ROBOT, "reason"),
            ),
        ],
        "Bytes and recording": [
            graph(
                "Frames recorded",
                "short",
                "With --record: frames of the episode that is being recorded, and those dropped: no observation in "
                "time, or the writer did not keep up. Good: unsaved frames grow by one a tick, none is lost.",
                increases("longarm_edge_recording_frames_total", ROBOT, "outcome"),
                Query(f"longarm_edge_recording_unsaved_frames{{{ROBOT}}}", "unsaved"),
            ),
            graph(
                "Requests and replies",
                "Bps",
                "Good: well below what the uplink carries. Frames are nearly all of it.",
                Query(f"rate(longarm_edge_sent_bytes_total{{{ROBOT}}}[$__rate_interval])", "requests"),
                Query(f"rate(longarm_edge_received_bytes_total{{{ROBOT}}}[$__rate_interval])", "replies"),
            ),
            graph(
                "Over SSH",
                "Bps",
                "The same with encryption, health checks and metrics. Good: little more than requests and replies.",
                Query(f"rate(longarm_edge_tunnel_sent_bytes_total{{{ROBOT}}}[$__rate_interval])", "sent"),
                Query(f"rate(longarm_edge_tunnel_received_bytes_total{{{ROBOT}}}[$__rate_interval])", "received"),
            ),
        ],
    }
    variable = Variable("robot", "Robot", "longarm_edge_build_info")
    return board("Longarm: robot", "One robot, from its control loop to the policy and back.", variable, rows)
