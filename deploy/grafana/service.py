"""The dashboard of one service: who uses it, where its time goes, and what its GPU has left."""

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
)
from deploy.prometheus import rules
from deploy.prometheus import thresholds as t
from grafana_foundation_sdk.builders.dashboard import Dashboard

SERVICE = 'instance="$instance"'
# The stages without their total, which would count everything twice in a stack
STAGES = f'{SERVICE}, stage!="total"'


def dashboard() -> Dashboard:
    """Returns the dashboard."""
    rows = {
        "At a glance": [
            number(
                "Sessions",
                "short",
                "Open sessions: one per robot. Good: as many as robots run.",
                Query(f"longarm_service_sessions{{{SERVICE}}}", "sessions"),
            ),
            number(
                "Policies loaded",
                "short",
                "Policies in memory. Good: as many as are in use.",
                Query(f"longarm_service_policies_loaded{{{SERVICE}}}", "policies"),
            ),
            number(
                "Waiting observations",
                "short",
                "Observations that wait for the policy. Good: 0 most of the time, never more than there are sessions.",
                Query(f"longarm_service_waiting_observations{{{SERVICE}}}", "waiting"),
            ),
            number(
                "Faults of its own",
                "short",
                f"Times that the policy or the service failed in {t.LONG_WINDOW}. Good: 0.",
                Query(f"{rules.SERVICE_FAULTS}{{{SERVICE}}}", "faults"),
                bad=t.SERVICE_FAULTS,
            ),
            name(
                "Version",
                "What the service runs, and on what. Good: the same version as the edge's.",
                Query(f"longarm_service_build_info{{{SERVICE}}}", "{{version}} on {{device}}"),
            ),
        ],
        "Inference": [
            graph(
                "From arrival to answer",
                "s",
                "Good: steady, and little more than the policy's own time.",
                *quantiles(
                    "longarm_service_inference_duration_seconds",
                    f'{SERVICE}, stage="total"',
                    0.5,
                    t.LATENCY_QUANTILE,
                    0.99,
                ),
            ),
            graph(
                "Mean by stage",
                "s",
                "Where the time goes. Good: predict is nearly all of it. A growing queue: too many robots for the GPU.",
                means("longarm_service_inference_duration_seconds", STAGES, "stage"),
                stacked=True,
            ),
            graph(
                "Slow ones by stage",
                "s",
                f"The {t.LATENCY_QUANTILE:.0%} quantile of each stage. Good: close to the mean.",
                slow("longarm_service_inference_duration_seconds", STAGES, "stage"),
            ),
        ],
        "Load": [
            graph(
                "Observation FPS",
                "suffix: /s",
                "Observations that arrive per second, from all robots. Good: what the robots say they send. Fewer: the "
                "network loses some.",
                Query(f"longarm_service_observation_fps{{{SERVICE}}}", "arrived"),
            ),
            graph(
                "Queue wait",
                "s",
                "Time that observations waited for the policy. Good: below one prediction.",
                *quantiles("longarm_service_queue_wait_seconds", SERVICE, 0.5, t.LATENCY_QUANTILE),
            ),
            graph(
                "Batch size",
                "suffix: observations",
                "Observations per forward pass. Good: 1 for one robot; more when several ask at once.",
                means("longarm_service_batch_size", SERVICE),
            ),
        ],
        "Outcomes": [
            graph(
                "What became of observations",
                "suffix: /s",
                "Good: answered. Superseded or queue_timeout: robots ask faster than the policy answers.",
                rates("longarm_service_observations_total", SERVICE, "outcome"),
                stacked=True,
            ),
            graph(
                "Errors",
                "short",
                "Failed calls by reason. Good: none. The runbook says what each means.",
                increases("longarm_service_errors_total", SERVICE, "reason"),
            ),
            graph(
                "Loading policies",
                "s",
                "Mean time to load a policy and warm it up, since the service started. Good: steady. "
                "Much slower: weights are fetched anew each time, so mount the cache.",
                Query(
                    f"longarm_service_policy_load_duration_seconds_sum{{{SERVICE}}} / "
                    f"longarm_service_policy_load_duration_seconds_count{{{SERVICE}}}",
                    "mean",
                ),
            ),
        ],
        "GPU": [
            graph(
                "Memory",
                "bytes",
                "Memory that tensors take, that torch holds, and that is there. Good: room between the last two. Empty "
                "on a machine without a GPU.",
                Query(f"longarm_service_gpu_memory_allocated_bytes{{{SERVICE}}}", "{{device}}: tensors"),
                Query(f"longarm_service_gpu_memory_reserved_bytes{{{SERVICE}}}", "{{device}}: torch"),
                Query(f"longarm_service_gpu_memory_total_bytes{{{SERVICE}}}", "{{device}}: there"),
            ),
            graph(
                "Memory held",
                "percentunit",
                f"Share of the memory that torch holds. Good: below {t.GPU_MEMORY_RATIO:.0%}.",
                Query(f"{rules.GPU_MEMORY}{{{SERVICE}}}", "{{device}}"),
            ),
            graph(
                "Utilisation",
                "percentunit",
                "Share of time the GPU was busy. Good: below 80 %, so that a second robot's request need not wait.",
                Query(f"longarm_service_gpu_utilization_ratio{{{SERVICE}}}", "{{device}}"),
            ),
        ],
    }
    variable = Variable("instance", "Service", "longarm_service_build_info")
    return board("Longarm: service", "One policy service on its GPU machine.", variable, rows)
