"""Longarm and LeRobot's own async pair, side by side over the same links. Writes bench/results/.

usage: python -m bench [--links loopback,40/50] [--seconds 12] [--only links,outages,act,replan] [--name latest]
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bench.analysis import figures, outage
from bench.cells import BEFORE_OUTAGE, Bench, Cell, Event, Measured
from bench.checkpoint import CHUNK_SIZE, HEIGHT, WIDTH, make_checkpoint, make_film
from bench.links import LINKS
from bench.network import make_network
from bench.page import write_page
from bench.peers import FPS, Longarm, Stock, ssh_available
from bench.plots import draw
from bench.publish import RESULTS
from bench.report import BYTES_PER_KILOBYTE, Row, as_json

INFERENCE = 0.1
PARTS = ("links", "outages", "act", "replan")
THRESHOLDS = (0.25, 0.5, 0.75)
PEERS = (Longarm.name, Stock.name)


def cells(parts: list[str], link_names: list[str], *, ssh: bool) -> list[Cell]:
    """Returns what to run, in order."""
    found = []
    ways = (False, True) if ssh else (False,)
    if "links" in parts:
        found += [Cell(peer, LINKS[name], way) for name in link_names for way in ways for peer in PEERS]
    emulated = [name for name in link_names if LINKS[name].emulated]
    if "replan" in parts:
        # The fastest link and the slowest: what is between lies between
        ends = dict.fromkeys((link_names[0], link_names[-1]))
        found += [
            Cell(
                Longarm.name,
                LINKS[name],
                variant=f"threshold {share:g}",
                flags=("--replan=threshold", f"--chunk_size_threshold={share}"),
            )
            for name in ends
            for share in THRESHOLDS
        ]
        found += [
            Cell(Longarm.name, LINKS[name], way, variant="continuous", flags=("--replan=continuous",))
            for name in link_names
            for way in ways
        ]
    if "act" in parts and "loopback" in link_names:
        found += [Cell(peer, LINKS["loopback"], policy="act") for peer in PEERS]
    if "outages" in parts and emulated:
        link = LINKS[emulated[0]]
        # Shorter than any deadline, so that what is open has to come back by itself
        found += [
            Cell(Longarm.name, link, way, event=event) for event in (Event.SHORT_SILENCE, Event.SILENCE) for way in ways
        ]
        found += [Cell(Stock.name, link, event=Event.SILENCE)]
        found += [Cell(peer, link, event=Event.RESTART) for peer in PEERS]
    return found


def row(cell: Cell, measured: Measured) -> Row:
    """Returns a cell's figures."""
    if measured.failure:
        return Row(cell, None, failure=measured.failure)
    # Of a cell with an outage, what was before it
    ended = measured.ended if measured.outage is None else measured.begun + BEFORE_OUTAGE
    found = figures(measured.events, measured.begun, ended, FPS)
    seconds = measured.ended - measured.begun
    whole = figures(measured.events, measured.begun, measured.ended, FPS)
    taken = whole.observations_per_second * seconds or np.nan
    chunks = whole.chunks_per_second * seconds or np.nan
    up, down = measured.up_bytes / taken, measured.down_bytes / taken
    inference = INFERENCE if cell.policy == "emulated" else np.nan
    return Row(
        cell,
        found,
        uplink_mbit=measured.up_bytes * 8 / seconds / 1e6,
        observation_kilobytes=up / BYTES_PER_KILOBYTE,
        reply_kilobytes=down / BYTES_PER_KILOBYTE,
        cpu_percent=measured.cpu_seconds / seconds * 100,
        cpu_ms_per_chunk=measured.cpu_seconds / chunks * 1000,
        floor_ms=cell.link.floor(up, down, inference) * 1000,
        outage=outage(measured.events, *measured.outage, measured.ended, FPS) if measured.outage else None,
    )


def about(kind: str, seconds: float) -> dict[str, str]:
    """Returns how the numbers came about."""
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release().split('-')[0]}",
        "versions": ", ".join(
            (
                f"Longarm {version('longarm-edge')}",
                f"LeRobot {version('lerobot')}",
                f"Python {platform.python_version()}",
            )
        ),
        "links": kind,
        "window": f"{seconds:g} s per cell, from 1 s after the first action on",
        "robot": f"6 joints, two {WIDTH}x{HEIGHT} cameras, {FPS} ticks per second",
        "policy": f"chunks of {CHUNK_SIZE}, frames as they are, {INFERENCE * 1000:.0f} ms per prediction (a wait)",
    }


def main() -> int:
    """Runs, writes, and returns 0 if every cell gave figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", default=",".join(LINKS), help=f"of {','.join(LINKS)}")
    parser.add_argument("--seconds", type=float, default=12, help="length of each window")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument(
        "--keep-window", action="store_true", help="set net.ipv4.tcp_slow_start_after_idle=0 on both sides"
    )
    parser.add_argument("--name", default="latest", help="of the result")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("out/bench"), help="folder of checkpoints and film")
    options = parser.parse_args()
    links, parts = options.links.split(","), options.only.split(",")
    if unknown := (set(links) - set(LINKS)) | (set(parts) - set(PARTS)):
        parser.error(f"Expected links of {', '.join(LINKS)} and parts of {', '.join(PARTS)}, found {sorted(unknown)}")
    work = options.work.resolve()
    frames = make_film(work / "film.npy")
    checkpoints = {
        "emulated": make_checkpoint(work / f"emulated-{WIDTH}x{HEIGHT}", INFERENCE),
        "act": make_checkpoint(work / f"act-{WIDTH}x{HEIGHT}", 0.0),
    }
    rows, logs = [], []
    with (
        tempfile.TemporaryDirectory(prefix="longarm-bench-") as directory,
        make_network(keep_window=options.keep_window) as network,
        Bench(network, Path(directory), frames, checkpoints, options.seconds) as bench,
    ):
        for cell in cells(parts, links, ssh=ssh_available()):
            begun = time.monotonic()
            measured = bench.run(cell)
            rows.append(row(cell, measured))
            logs.append(measured)
            took = f"{time.monotonic() - begun:.0f} s"
            print(f"{cell.name}: {measured.failure or took}", file=sys.stderr, flush=True)
        kind = network.kind
    circumstances = about(kind, options.seconds)
    options.results.mkdir(parents=True, exist_ok=True)
    result = {"about": circumstances, "rows": [as_json(one) for one in rows]}
    (options.results / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    pictures = draw(rows, logs, options.results, options.name)
    write_page(options.results / "README.md", circumstances, rows, pictures)
    print((options.results / "README.md").read_text())
    return 1 if any(one.failure for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
