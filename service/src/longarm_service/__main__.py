"""The command longarm-service from its first moment on, and `python -m longarm_service`."""

import signal


def main() -> None:
    """Runs the command and exits with its code."""
    # What follows takes a second to import. Ctrl-C then ends the command as it would any other, without a traceback
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from longarm_service import cli

    signal.signal(signal.SIGINT, before)
    cli.main()


if __name__ == "__main__":
    main()
