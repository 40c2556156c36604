"""longarm-service with a scripted policy, for tests that need a process. Arguments: its flags.

Prints "predicting" when a prediction has begun; it goes on when a line comes on stdin.
"""

import sys

from tests.service.fakes import FakeLoader, FakePolicy, Observation

from longarm_service import cli
from longarm_service.policy import Guidance
from longarm_service.settings import ServiceSettings


class SlowPolicy(FakePolicy):
    def predict(self, prepared: Observation, guidance: Guidance | None = None) -> object:  # type: ignore[override]
        print("predicting", flush=True)
        sys.stdin.readline()
        return super().predict(prepared, guidance)


class SlowLoader(FakeLoader):
    def load(self, choice, report):  # type: ignore[no-untyped-def]
        policy = super().load(choice, report)
        policy.__class__ = SlowPolicy
        return policy


if __name__ == "__main__":
    settings = ServiceSettings.load(sys.argv[1:], program="serve_fake")
    sys.exit(cli.run(settings, SlowLoader))
