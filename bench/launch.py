"""Runs one half of a peer as its own command would, after making the bench's robot and policy known to LeRobot.

usage: python -m bench.launch {service,edge,stock-server,stock-client} [its own flags]
       python -m bench.launch sshd DIRECTORY PORT [ADDRESS ...]

Both peers are what is installed, unmodified. LeRobot's server takes only the types of policy in a list; the bench's own
is added to that list, and nothing else is touched.
"""

import sys
from pathlib import Path


def main() -> None:
    """Becomes the program."""
    program, *flags = sys.argv[1:]
    sys.argv = [program, *flags]
    if program == "sshd":
        _sshd(Path(flags[0]), int(flags[1]), flags[2:])
        return
    if program == "stock-server":
        from bench.configuration_emulated import POLICY_TYPE
    elif program != "service":
        from bench import config_arm  # noqa: F401 - registers the robot
    if program == "service":
        from longarm_service.cli import main as serve

        serve(flags, imports=["bench.configuration_emulated"])
    elif program == "edge":
        from longarm_edge.cli import main as drive

        drive(["run", *flags])
    elif program == "stock-server":
        from lerobot.async_inference import constants, policy_server

        constants.SUPPORTED_POLICIES.append(POLICY_TYPE)
        policy_server.serve()
    elif program == "stock-client":
        from lerobot.async_inference.robot_client import async_client

        async_client()
    else:
        sys.exit(f"bench.launch: there is no program {program!r}\n{__doc__}")


def _sshd(directory: Path, port: int, addresses: list[str]) -> None:
    """Runs a private sshd on addresses and on the loopback until standard input is closed."""
    from longarm_edge.tunnel.local_sshd import LocalSshd

    with LocalSshd(directory, options=[f"ListenAddress {address}" for address in addresses], port=port):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
