"""What the policy's own configuration says of how its chunks are executed: what is done of it, and what is told."""

from collections.abc import Sequence

from longarm_edge.answers import Session
from longarm_edge.merging import LEROBOT_MERGES, Merge, but_for, fade, latest_only, temporal_ensemble
from longarm_edge.settings import AggregateName, EdgeSettings
from longarm_wire.settings import ConfigurationError

# That of ACT's authors
USUAL_COEFFICIENT = 0.01


def merging(session: Session, settings: EdgeSettings, action_names: Sequence[str]) -> Merge:
    """Returns how chunks become one plan.

    Raises:
      ConfigurationError: An action that is not to be blended is none of the robot's.
    """
    if unknown := sorted(set(settings.unblended_actions) - set(action_names)):
        raise ConfigurationError(
            [f"unblended_actions names {', '.join(unknown)}; the robot has {', '.join(action_names)}"]
        )
    columns = [action_names.index(name) for name in settings.unblended_actions]
    return but_for(columns, _merge(session, settings))


def _merge(session: Session, settings: EdgeSettings) -> Merge:
    said, chosen = session.temporal_ensemble_coeff, settings.aggregate_fn_name
    match chosen:
        case AggregateName.AUTO if said is not None:
            return temporal_ensemble(said)
        case AggregateName.AUTO | AggregateName.FADE:
            return fade(settings.fade_seconds * settings.fps)
        case AggregateName.TEMPORAL_ENSEMBLE:
            own = settings.temporal_ensemble_coeff
            return temporal_ensemble(own if own is not None else said if said is not None else USUAL_COEFFICIENT)
        case AggregateName.RTC:
            # The policy itself has made the new chunk follow the old one
            return latest_only
        case _:
            return LEROBOT_MERGES[chosen]


def remark(session: Session, settings: EdgeSettings) -> str:
    """Returns what whoever knows the policy from LeRobot should be told of its chunks; nothing if there is nothing."""
    said, chosen = session.temporal_ensemble_coeff, settings.aggregate_fn_name
    if said is not None and chosen is AggregateName.AUTO:
        return f"each action is the mean of all chunks for its step, as temporal_ensemble_coeff={said:g} weights them"
    if said is not None and chosen is not AggregateName.TEMPORAL_ENSEMBLE:
        return (
            f"the policy says temporal_ensemble_coeff={said:g}, and aggregate_fn_name={chosen} sets it aside. Leave "
            "aggregate_fn_name out to have it heeded"
        )
    own, taken = session.n_action_steps, min(settings.actions_per_chunk or session.chunk_size, session.chunk_size)
    if 0 < own < taken:
        return (
            f"the policy says n_action_steps={own}: LeRobot executes so many actions of a chunk and then looks anew. "
            f"Here the next chunk comes while one is executed, and the others of {taken} are for when it is late. "
            f"--actions_per_chunk={own} leaves them out"
        )
    return ""
