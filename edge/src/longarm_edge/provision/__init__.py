"""Brings up the policy service on a far machine over SSH, and looks after it there.

`look` sees what there is (facts.py), `plan` decides what to do (plan.py, no SSH in it), the executor does it
(executor.py); commands.py puts them together. On the far side a supervisor (longarm_service/supervisor.py) keeps the
service running. Everything there lies in one directory:

  venv/       virtual environment, with stamps .base, .packages and .longarm, each written when its part is whole
  wheels/     our own packages, and what they require
  policies/   uploaded policies; NAME.part is one that is not whole yet
  run/        the supervisor's and the service's files
  logs/       service.log and older ones
  cache/      what libraries keep, and temporary files
  .longarm    marks the directory as one that may be removed, and is locked by whoever changes something in it
"""

from longarm_edge.provision.arguments import Arguments, understand
from longarm_edge.provision.commands import manage, up
from longarm_edge.provision.errors import ProvisionError
from longarm_edge.provision.executor import FarService
from longarm_edge.provision.settings import FarSettings

__all__ = ["Arguments", "FarService", "FarSettings", "ProvisionError", "manage", "understand", "up"]
