"""What a policy's configuration says of its chunks and cameras, from the service to the arm."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from longarm_edge.settings import SafetySettings
from longarm_wire import exit_codes
from longarm_wire.settings import ConfigurationError
from tests.e2e.conftest import DEFAULT_SPEC

TOP = "observation.images.top"


@pytest.fixture
def torn(script) -> None:
    """Chunks that say 0 and 10 by turns, from a policy that says how to weight them."""
    script.spec = replace(DEFAULT_SPEC, n_action_steps=1, temporal_ensemble_coeff=0.01)
    script.faults = {number: np.full((30, 3), number % 2 * 10, np.float32) for number in range(300)}


@pytest.mark.usefixtures("torn")
def test_an_act_that_ensembles_is_ensembled(edge, arm, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert edge(duration=1.5).go().exit_code == exit_codes.DONE
    assert "mean of all chunks for its step, as temporal_ensemble_coeff=0.01 weights them" in caplog.text
    assert "n_action_steps" not in caplog.text, "LeRobot wants it to be 1, and it means nothing"
    assert [pan for _, (pan, *_) in arm.commands if 3 < pan < 7]


@pytest.mark.usefixtures("torn")
def test_another_aggregate_function_goes_before_it(edge, arm, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        edge(duration=1.0, aggregate_fn_name="latest_only", safety=SafetySettings(ease_in_speed=None)).go()
    assert "temporal_ensemble_coeff=0.01, and aggregate_fn_name=latest_only sets it aside" in caplog.text
    assert {pan for _, (pan, *_) in arm.commands} <= {0, 10}


def test_where_chunks_disagree_the_arm_goes_over_smoothly_by_default(edge, arm, script) -> None:
    """Chunks that are 10 apart made the arm jump by 10 at each switch."""
    script.faults = {number: np.full((30, 3), number % 2 * 10, np.float32) for number in range(300)}
    e = edge(duration=2.0)
    assert e.go().exit_code == exit_codes.DONE
    path = np.array([pan for _, (pan, *_) in arm.commands])
    assert np.ptp(path) > 3, "it follows what it is told"
    assert np.abs(np.diff(path)).max() < 4
    assert e.run.trace.lags, "how far the arm lags is seen"


def test_a_run_says_what_lerobot_would_execute_of_a_chunk(edge, script, caplog: pytest.LogCaptureFixture) -> None:
    script.spec = replace(DEFAULT_SPEC, n_action_steps=10)
    with caplog.at_level(logging.INFO):
        edge(duration=0.5).go()
    assert "the policy says n_action_steps=10" in caplog.text
    assert "--actions_per_chunk=10 leaves them out" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        edge(duration=0.5, actions_per_chunk=10).go()
    assert "n_action_steps" not in caplog.text


def test_a_coefficient_that_is_no_number_is_refused(edge, script) -> None:
    script.spec = replace(DEFAULT_SPEC, temporal_ensemble_coeff=float("nan"))
    with pytest.raises(ConfigurationError, match="finite temporal_ensemble_coeff, found nan"):
        edge().go()


def test_a_policy_does_without_a_camera_that_is_to_be_masked(edge, script) -> None:
    cameras = {**DEFAULT_SPEC.cameras, TOP: (48, 64)}
    script.spec = replace(DEFAULT_SPEC, cameras=cameras, masks_missing_cameras=True)
    with pytest.raises(ConfigurationError, match=rf'masked_cameras=\["{TOP}"\]'):
        edge().go()
    assert edge(masked_cameras=(TOP,), duration=0.5).go().exit_code == exit_codes.DONE


def test_what_the_warm_up_leaves_in_a_policy_is_forgotten(edge, script) -> None:
    edge(duration=0.5).go()
    warm_up, *others = script.rollouts
    assert warm_up == 1
    assert set(others) == {2}


def test_a_warm_up_in_model_space_that_is_no_number_is_no_warm_up(edge, script, monkeypatch, arm) -> None:
    script.spec = replace(DEFAULT_SPEC, supports_rtc=True, model_action_dim=3)
    monkeypatch.setattr(
        "tests.e2e.conftest.ScriptedPolicy.in_model_space", lambda _, chunk: np.full_like(chunk, np.nan)
    )
    result = edge(aggregate_fn_name="rtc").go()
    assert "The first prediction failed: Expected finite actions" in result.reason
    assert arm.commands == []
