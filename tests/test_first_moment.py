"""Ctrl-C in the first second of a command, while Python still imports what it is made of."""

import signal
import subprocess
import sys

import pytest

# Presses Ctrl-C when the command's own imports come to a library
PRESS = """
import importlib.abc, os, runpy, signal, sys

class Press(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pydantic_settings":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
sys.argv = [sys.argv[1], "--help"]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("package", ["longarm_edge", "longarm_service"])
def test_it_ends_without_a_traceback(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRESS, package], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGINT
    assert done.stdout + done.stderr == ""
