"""python -m tests.attacks [--minutes N] [--only FAMILY]: attacks a service while a robot streams, and says how it was.

Exit code 1 if an attack did more to the robot than honest traffic does.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import grpc

from tests.attacks.arena import HONEST, Arena
from tests.attacks.attacks import FAMILIES
from tests.attacks.target import Target, tolerant

# The attacker rests for longer than a step took: what is judged is the service, not who gets the processors
REST_TIMES = 2
LEAST_REST_SECONDS = 0.02
MOST_SECONDS = 30.0


def attack(family: str, port: int, metrics_port: int, seconds: float) -> None:
    """Does all steps of a family, and goes on for so long. Prints what came of it as JSON."""
    target = Target(port, metrics_port)
    steps = list(FAMILIES[family](target)) if family != HONEST else honest(target)
    print("ready", flush=True)
    sys.stdin.read()
    begun, count, broken = time.monotonic(), 0, []
    slowest, slowest_seconds = "none", 0.0
    while (passed := time.monotonic() - begun) < seconds or (count < len(steps) and passed < MOST_SECONDS):
        name, step = steps[count % len(steps)]
        count += 1
        started = time.monotonic()
        try:
            step()
        except grpc.RpcError as error:
            broken.append(f"{name}: {error.code()} {error.details()}"[:300])  # type: ignore[attr-defined]
        took = time.monotonic() - started
        if took > slowest_seconds:
            slowest, slowest_seconds = f"{name} ({took:.2f} s)", took
        time.sleep(max(REST_TIMES * took, LEAST_REST_SECONDS))
    print(json.dumps({"steps": count, "slowest": slowest, "broken": broken}), flush=True)


def honest(target: Target) -> list:  # type: ignore[type-arg]
    """Returns what another robot does: it streams."""
    request = target.observation(target.session())
    return [("an observation", lambda: tolerant(target.stub.PredictChunk, request))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long all of it takes")
    parser.add_argument("--only", choices=sorted(FAMILIES), help="one family of attacks")
    parser.add_argument("--attack", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        family, port, metrics_port, seconds = arguments.attack
        attack(family, int(port), int(metrics_port), float(seconds))
        return 0
    families = [arguments.only] if arguments.only else list(FAMILIES)
    seconds = arguments.minutes * 60 / len(families)
    failed = False
    with tempfile.TemporaryDirectory() as directory, Arena(Path(directory)) as arena:
        print(arena.quiet, flush=True)
        for family in families:
            finding, problems = arena.judged(family, seconds, attempts=3)
            print(finding, *(f"    {problem}" for problem in problems), sep="\n", flush=True)
            failed = failed or bool(problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
