"""The first moment of a command, in which Python imports what it is made of."""

import importlib
import signal


def run(module: str) -> None:
    """Imports module and calls its main. Ctrl-C meanwhile ends the process without a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = importlib.import_module(module)
    signal.signal(signal.SIGINT, before)
    command.main()
