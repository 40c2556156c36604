"""The command longarm-edge from its first moment on, and `python -m longarm_edge`."""

from longarm_wire import first_moment


def main() -> None:
    """Runs the command and exits with its code."""
    first_moment.run("longarm_edge.cli")


if __name__ == "__main__":
    main()
