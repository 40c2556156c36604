"""The command longarm-service from its first moment on, and `python -m longarm_service`."""

from longarm_wire import first_moment


def main() -> None:
    """Runs the command and exits with its code."""
    first_moment.run("longarm_service.cli")


if __name__ == "__main__":
    main()
