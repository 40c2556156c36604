"""longarm-service with policies of far_policies.py, in processes of their own. Arguments: its flags."""

import sys

from tests.service.far_policies import FACTORY

from longarm_service import cli
from longarm_service.process_loader import ProcessLoader
from longarm_service.settings import ServiceSettings

if __name__ == "__main__":
    settings = ServiceSettings.load(sys.argv[1:], program="serve_far")
    timeouts = {"load_timeout_seconds": settings.load_timeout, "predict_timeout_seconds": settings.predict_timeout}
    sys.exit(cli.run(settings, lambda: ProcessLoader({}, **timeouts, factory=FACTORY)))
