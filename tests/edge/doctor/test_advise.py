"""The doctor's advice: the smallest change that helps, and what would where no setting does."""

from dataclasses import replace

import pytest

from longarm_edge.doctor.advise import NO_IDLE, Packing, recommend
from longarm_edge.doctor.predict import Costs, Plan
from longarm_edge.replan import Replan
from longarm_wire.images import Codec

FAST = Costs(capture=0.005, encode=0.003, observation_bytes=40e3, round_trip=0.04, uplink=5e6, service=0.1)
PLAN = Plan(fps=30, actions_per_chunk=50, replan=Replan.AUTO, chunk_size_threshold=0.5, max_action_age=3.0)
JPEG_90, JPEG_50, RAW = Packing(Codec.JPEG, 90), Packing(Codec.JPEG, 50), Packing(Codec.RAW, 90)


def test_settings_that_fit_are_left_alone() -> None:
    costs = {JPEG_90: FAST, JPEG_50: replace(FAST, observation_bytes=20e3)}
    advice = recommend(PLAN, costs, JPEG_90, chunk_size=50)
    assert advice.flags == ()
    assert advice.why == "The settings fit."


def test_a_chunk_that_is_long_enough_is_left_as_short_as_it_was_set() -> None:
    assert recommend(replace(PLAN, actions_per_chunk=20), {JPEG_90: FAST}, JPEG_90, chunk_size=50).flags == ()


def test_a_threshold_of_zero_is_urgent_enough_by_itself() -> None:
    plan = replace(PLAN, replan=Replan.THRESHOLD, chunk_size_threshold=0.0)
    assert recommend(plan, {JPEG_90: FAST}, JPEG_90, 50).flags == ()


def test_too_short_chunks_are_lengthened() -> None:
    plan = replace(PLAN, actions_per_chunk=8)
    advice = recommend(plan, {JPEG_90: replace(FAST, service=0.4)}, JPEG_90, chunk_size=50)
    assert advice.flags == ("--actions_per_chunk=50",)


def test_a_thin_uplink_gets_smaller_pictures() -> None:
    thin = replace(FAST, uplink=60e3, observation_bytes=90e3)
    advice = recommend(PLAN, {JPEG_90: thin, JPEG_50: replace(thin, observation_bytes=30e3)}, JPEG_90, chunk_size=50)
    assert advice.flags == ("--jpeg_quality=50",)
    assert advice.prediction.idle_share <= NO_IDLE


def test_raw_frames_on_a_thin_uplink_become_jpeg() -> None:
    thin = replace(FAST, uplink=1e6, observation_bytes=1.8e6)
    advice = recommend(PLAN, {RAW: thin, JPEG_90: replace(thin, observation_bytes=40e3)}, RAW, chunk_size=50)
    assert advice.flags == ("--image_codec=jpeg",)


@pytest.mark.parametrize(
    ("slow", "words"),
    [
        ({"service": 8.0}, "8.00 s of it are the policy's: a faster GPU would help"),
        ({"round_trip": 2.5}, "2.50 s of it are the way there and back: a nearer GPU would help"),
        ({"uplink": 16e3}, "2.50 s of it are the upload: a faster uplink or fewer cameras would help"),
        ({"capture": 2.5}, "2.50 s of it are the robot's: faster or fewer cameras would help"),
    ],
)
def test_what_cannot_be_mended_by_settings_is_said_with_what_would_help(slow: dict[str, float], words: str) -> None:
    advice = recommend(PLAN, {JPEG_90: replace(FAST, **slow)}, JPEG_90, chunk_size=50)
    assert advice.flags == ()
    assert words in advice.why
    longer = "a policy with longer chunks"
    assert (longer in advice.why) == (slow.get("service", 0) < PLAN.max_action_age)


def test_an_answer_that_takes_longer_than_the_longest_chunk_is_told_as_such() -> None:
    advice = recommend(PLAN, {JPEG_90: replace(FAST, service=2.0)}, JPEG_90, chunk_size=50)
    assert "an answer takes 2.06 s, and a chunk lasts 1.67 s" in advice.why


def test_frames_are_not_made_worse_where_that_spares_next_to_nothing() -> None:
    """On a far link with a fast uplink the bytes are not what takes long."""
    far = replace(FAST, round_trip=0.9, uplink=250e3, service=0.4, observation_bytes=18e3)
    costs = {JPEG_90: far, JPEG_50: replace(far, observation_bytes=6e3)}
    advice = recommend(PLAN, costs, JPEG_90, chunk_size=50)
    assert advice.prediction.idle_share > NO_IDLE
    assert advice.flags == ()


def test_answers_that_are_too_old_when_they_come_are_told_as_such() -> None:
    advice = recommend(PLAN, {JPEG_90: replace(FAST, service=4.0)}, JPEG_90, chunk_size=300)
    assert "no action is executed that is older than safety.max_action_age=3 s" in advice.why
    assert "so would a larger safety.max_action_age" in advice.why
    assert "longer chunks" not in advice.why, "they would be as old"


@pytest.mark.parametrize("service", [0.1, 0.4, 2.0, 8.0])
@pytest.mark.parametrize("chunk_size", [8, 50])
def test_the_rate_that_a_policy_was_trained_at_is_never_advised_away(service: float, chunk_size: int) -> None:
    plan = replace(PLAN, actions_per_chunk=8)
    advice = recommend(plan, {JPEG_90: replace(FAST, service=service)}, JPEG_90, chunk_size)
    assert not any("fps" in words for words in (*advice.flags, advice.why))


def test_a_horizon_that_is_shorter_than_a_chunk_takes_to_come_is_lengthened() -> None:
    """5 ticks at 30 a second pass before a chunk comes: when it follows the old one for no more, the arm jumps."""
    advice = recommend(replace(PLAN, horizon=5), {JPEG_90: FAST}, JPEG_90, chunk_size=50)
    assert advice.flags == ("--rtc.execution_horizon=10",)
    assert (
        advice.why == "A chunk takes 5 ticks to come and follows the old one for 5: the arm would jump where they meet."
    )
    assert recommend(replace(PLAN, horizon=6), {JPEG_90: FAST}, JPEG_90, chunk_size=50).flags == ()
