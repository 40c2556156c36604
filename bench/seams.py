"""What each way of merging makes of a policy whose chunks disagree. Prints Markdown, writes bench/results/seams.md.

usage: python -m bench.seams [--seconds 120]

Time is counted in ticks and nothing is waited for, so the numbers are the same on every machine. The action queue and
the ways of merging are Longarm's own. The policy knows its plan, a round of two joints with four that swing along, and
each of its chunks is off by an offset of its own.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from bench.publish import publish
from longarm_edge.action_queue import ActionChunk, ActionQueue
from longarm_edge.merging import LEROBOT_MERGES, Merge, fade, temporal_ensemble
from longarm_edge.replan import REST_TICKS

FPS = 30
CHUNK = 50
JOINTS = 6
# How far a chunk is off, rms per joint, degrees
DISAGREEMENT = 1.5
RADIUS, SECONDS_PER_ROUND = 20.0, 5.0
# From capture to merge in ticks: what `make bench` measures with a policy of 100 ms
LINKS = {"same machine": 4, "RTT 40 ms, 50 Mbit/s up": 5, "RTT 40 ms, 10 Mbit/s up": 6, "RTT 120 ms, 20 Mbit/s up": 8}
MERGES: dict[str, Merge] = {
    **LEROBOT_MERGES,
    "temporal_ensemble, 0.01": temporal_ensemble(0.01),
    "fade, 0.05 s": fade(0.05 * FPS),
    "fade, 0.1 s": fade(0.1 * FPS),
    "fade, 0.2 s": fade(0.2 * FPS),
}


@dataclass(frozen=True)
class Played:
    """What an arm was told.

    Attributes:
      commands: Degrees, shape (ticks, joints).
      switches: Whether each command is the first of its chunk, shape (ticks).
      age: Mean age of the newest part, seconds.
      mean_age: Mean age of all parts, seconds.
    """

    commands: np.ndarray
    switches: np.ndarray
    age: float
    mean_age: float


def path(ticks: np.ndarray) -> np.ndarray:
    """Returns the plan at ticks of shape (n,), degrees, shape (n, JOINTS)."""
    phase = 2 * np.pi * ticks[:, None] / (FPS * SECONDS_PER_ROUND)
    circle = [RADIUS * np.cos(phase), RADIUS * np.sin(phase)]
    return np.hstack([*circle, *(RADIUS / 2 * np.sin(phase + joint) for joint in range(2, JOINTS))])


def play(merge: Merge, delay: int, ticks: int, *, disagreement: float = DISAGREEMENT, turns_at: int = -1) -> Played:
    """Runs an arm that goes where it is sent, asked for anew as replan=auto does; an answer takes delay ticks.

    From tick turns_at on, if there is one, the plan is 10 degrees away from where it was.
    """
    rng = np.random.default_rng(0)
    queue = ActionQueue(1e9, merge)
    arriving: tuple[int, ActionChunk] | None = None
    asked_at, sequence, last = -ticks, 0, 0
    commands, switches, ages, mean_ages = [], [], [], []
    for tick in range(ticks):
        if arriving is not None and tick >= arriving[0]:
            queue.merge(arriving[1], 0.0)
            arriving, asked_at = None, tick
        if arriving is None and tick - asked_at >= REST_TICKS:
            sequence += 1
            plan = path(tick + np.arange(CHUNK)) + rng.normal(0, disagreement, JOINTS)
            plan += 10.0 * (0 <= turns_at <= tick)
            chunk = ActionChunk(0, 0, sequence, tick, tick / FPS, plan.astype(np.float32))
            arriving = (tick + delay if tick else 0, chunk)
            if not tick:
                queue.merge(chunk, 0.0)
                arriving, asked_at = None, 0
        action, _ = queue.take(0.0)
        assert action is not None
        commands.append(action.values)
        switches.append(action.sequence != last)
        last = action.sequence
        ages.append(tick / FPS - action.captured_at)
        mean_ages.append(tick / FPS - action.mean_captured_at)
    return Played(np.stack(commands), np.array(switches), float(np.mean(ages)), float(np.mean(mean_ages)))


def reaction(merge: Merge, delay: int) -> tuple[float, float]:
    """Returns after how many seconds a plan that turns is followed by half and by 90 %, over all phases of asking."""
    found = []
    for phase in range(delay + REST_TICKS):
        at = 60 + phase
        turned, straight = (play(merge, delay, at + 120, disagreement=0, turns_at=turn) for turn in (at, -1))
        share = (turned.commands - straight.commands)[at:, 0] / 10
        found.append([np.argmax(share >= part) / FPS for part in (0.5, 0.9)])
    half, most = np.mean(found, axis=0)
    return float(half), float(most)


def row(name: str, merge: Merge, delay: int, ticks: int) -> str:
    """Returns a line of the table."""
    played = play(merge, delay, ticks)
    plan = path(np.arange(ticks))
    steps = np.abs(np.diff(played.commands, axis=0)).max(axis=1)
    at, within = steps[played.switches[1:]], steps[~played.switches[1:]]
    jerk = np.sqrt(np.mean((np.diff(played.commands, 3, axis=0) * FPS**3) ** 2))
    error = np.sqrt(np.mean((played.commands - plan) ** 2))
    half, most = reaction(merge, delay)
    return (
        f"| {name} | {np.median(at):.2f} / {np.quantile(at, 0.95):.2f} | {np.quantile(within, 0.95):.2f} "
        f"| {jerk:,.0f} | {error:.2f} | {played.age:.2f} / {played.mean_age:.2f} | {half:.2f} / {most:.2f} |"
    )


def report(seconds: float) -> str:
    """Returns the whole page."""
    ticks = round(seconds * FPS)
    plan = path(np.arange(ticks))
    step = np.quantile(np.abs(np.diff(plan, axis=0)).max(axis=1), 0.95)
    lines = [
        "# Where chunks meet",
        "",
        "Made by `python -m bench.seams`. Do not edit.",
        "",
        f"A policy whose chunks of {CHUNK} are off by {DISAGREEMENT} degrees rms per joint, each by an offset of its",
        f"own, at {FPS} ticks per second, asked anew {REST_TICKS} ticks after each answer; virtual time. Its own plan",
        f"makes {step:.2f} degrees a tick (p95). Ages are of an action's newest part and the mean of all its parts;",
        "the last column is how long it takes until a plan that turns by 10 degrees is followed by half and by 90 %.",
    ]
    for link, delay in LINKS.items():
        lines += [
            "",
            f"## {link}: {delay} ticks from capture to merge",
            "",
            "| merge | switch, deg, p50 / p95 | within, p95 | jerk rms, deg/s³ | error, deg | age, s | reaction, s |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(row(name, merge, delay, ticks) for name, merge in MERGES.items()),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run, in virtual time")
    publish("seams", report(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
