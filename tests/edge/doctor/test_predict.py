"""The doctor's predictions, against what is known of queues."""

import pytest

from longarm_edge.doctor.predict import Costs, Plan, predict
from longarm_edge.replan import Replan

FAST = Costs(capture=0.005, encode=0.003, observation_bytes=40e3, round_trip=0.04, uplink=5e6, service=0.1)
PLAN = Plan(fps=30, actions_per_chunk=50, replan=Replan.AUTO, chunk_size_threshold=0.5, max_action_age=3.0)


def costs(**changes: float) -> Costs:
    return Costs(**{**FAST.__dict__, **changes})


def test_latency_is_the_sum_of_its_parts() -> None:
    assert FAST.latency == pytest.approx(0.005 + 0.003 + 0.04 + 0.008 + 0.1)


def test_a_good_link_has_no_idle_tick() -> None:
    prediction = predict(FAST, PLAN)
    assert prediction.idle_share == 0
    assert FAST.latency < prediction.age_mean < 50 / 30
    assert prediction.age_max < 50 / 30 + FAST.latency


@pytest.mark.parametrize("replan", Replan)
@pytest.mark.parametrize("service", [1.1, 0.9, 0.4])
def test_a_chunk_shorter_than_its_round_trip_is_played_and_waited_for(replan: Replan, service: float) -> None:
    """Ten actions last 0.33 s and take longer to come: all are executed, and the arm stands in between."""
    slow = costs(service=service)
    prediction = predict(slow, Plan(30, 10, replan, 0.5, 3.0))
    assert prediction.idle_share == pytest.approx(slow.latency / (slow.latency + 10 / 30), abs=0.03)


def test_asking_more_often_gives_fresher_actions_for_more_uplink() -> None:
    seldom, often = predict(FAST, PLAN), predict(FAST, Plan(30, 50, Replan.CONTINUOUS, 0.5, 3.0))
    assert often.age_mean < seldom.age_mean
    assert often.uplink_bytes_per_second > seldom.uplink_bytes_per_second


def test_actions_that_would_be_too_old_count_as_idle() -> None:
    assert predict(costs(service=3.5), Plan(30, 300, Replan.AUTO, 0.5, 3.0)).idle_share > 0.9


def test_a_chunk_is_asked_for_while_there_is_enough_for_it_to_follow() -> None:
    """Real-time chunking asks when no more actions than its horizon are left, whatever the rule."""
    late = Plan(fps=30, actions_per_chunk=50, replan=Replan.THRESHOLD, chunk_size_threshold=0.0, max_action_age=3.0)
    follows = predict(FAST, Plan(**{**late.__dict__, "horizon": 45}))
    assert follows.uplink_bytes_per_second > 2 * predict(FAST, late).uplink_bytes_per_second
