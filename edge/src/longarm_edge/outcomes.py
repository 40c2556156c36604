"""What a refusal by the service means for the run."""

from longarm_edge.metrics import Observation
from longarm_wire.errors import Reason

# What a refused request means for the observation that was sent
OUTCOMES = {
    Reason.SUPERSEDED: Observation.SUPERSEDED,
    Reason.QUEUE_TIMEOUT: Observation.SUPERSEDED,
    Reason.POLICY_FAILED: Observation.FAILED,
    Reason.POLICY_RETURNED_INVALID: Observation.REJECTED,
    Reason.INVALID_REQUEST: Observation.REJECTED,
    Reason.INVALID_IMAGE: Observation.REJECTED,
    Reason.FOREIGN_REPLY: Observation.REJECTED,
    Reason.SESSION_UNKNOWN: Observation.LOST,
    Reason.SHUTTING_DOWN: Observation.LOST,
}
# Reasons that end a run when they meet a reopened session: no later try can end otherwise
FATAL_AT_REOPEN = frozenset(
    {
        Reason.SPEC_MISMATCH,
        Reason.POLICY_NOT_ALLOWED,
        Reason.POLICY_NOT_FOUND,
        Reason.POLICY_LOAD_FAILED,
        Reason.POLICY_UNSUPPORTED,
        Reason.RTC_UNSUPPORTED,
    }
)
