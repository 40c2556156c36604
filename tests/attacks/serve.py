"""longarm-service with a policy that takes a GPU's time. Arguments: its flags."""

import sys
import time
from typing import Any

from longarm_service import cli
from longarm_service.policy import Guidance, PolicyChoice, Report
from longarm_service.settings import ServiceSettings
from tests.attacks.target import CAMERAS, HEIGHT, WIDTH
from tests.service.fakes import FakeLoader, FakePolicy, Observation, fake_spec

FORWARD_SECONDS = 0.01


class Policy(FakePolicy):
    """Answers after a while in which others may run, as while a GPU computes, and remembers nothing."""

    def predict(self, prepared: Observation, guidance: Guidance | None = None) -> Any:
        time.sleep(FORWARD_SECONDS)
        chunk = super().predict(prepared, guidance)
        self.tasks.clear()
        self.guidances.clear()
        self.opened.clear()
        return chunk


class Loader(FakeLoader):
    """Loads any name."""

    def load(self, choice: PolicyChoice, report: Report) -> FakePolicy:
        policy = super().load(choice, report)
        policy.__class__ = Policy
        self.policies.clear()
        self.loads.clear()
        return policy


if __name__ == "__main__":
    settings = ServiceSettings.load(sys.argv[1:], program="serve")
    size = {f"observation.images.{name}": (HEIGHT, WIDTH) for name in CAMERAS}
    sys.exit(cli.run(settings, lambda: Loader(spec=fake_spec(cameras=size, supports_rtc=True, model_action_dim=3))))
