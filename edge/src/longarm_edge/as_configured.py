"""What the policy's own configuration says of how its chunks are executed: what is done of it, and what is told."""

from longarm_edge.answers import Session
from longarm_edge.settings import AggregateName, EdgeSettings


def temporal_ensemble_coeff(session: Session, settings: EdgeSettings) -> float | None:
    """Returns the coefficient to merge chunks with, None for no temporal ensembling."""
    return session.temporal_ensemble_coeff if settings.aggregate_fn_name is AggregateName.AUTO else None


def remark(session: Session, settings: EdgeSettings) -> str:
    """Returns what whoever knows the policy from LeRobot should be told of its chunks; nothing if there is nothing."""
    said, chosen = session.temporal_ensemble_coeff, settings.aggregate_fn_name
    if said is not None and chosen is AggregateName.AUTO:
        return f"each action is the mean of all chunks for its step, as temporal_ensemble_coeff={said:g} weights them"
    if said is not None:
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
