"""Both peers, whole, through a link: the bench itself."""

from pathlib import Path

import pytest

from bench.analysis import figures
from bench.cells import Bench, Cell
from bench.checkpoint import make_checkpoint, make_film
from bench.links import LinkSpec
from bench.network import Proxies
from bench.peers import FPS, Longarm, Stock


@pytest.mark.timeout(300)
def test_both_peers_run_and_are_measured(tmp_path: Path) -> None:
    checkpoints = {"emulated": make_checkpoint(tmp_path / "emulated", 0.1)}
    film = make_film(tmp_path / "film.npy", 160, 120)
    link = LinkSpec("x", rtt=0.02)
    found = {}
    with Proxies("a test") as network, Bench(network, tmp_path, film, checkpoints, seconds=3) as bench:
        for peer in (Longarm.name, Stock.name):
            measured = bench.run(Cell(peer, link))
            assert measured.failure == ""
            found[peer] = figures(measured.events, measured.begun, measured.ended, FPS)
            assert measured.up_bytes > 0
            assert measured.cpu_seconds > 0
    for one in found.values():
        assert one.actions_per_second > 10
        assert one.chunks_per_second > 0
        # The link and the policy are in the numbers
        assert one.first_p50_ms > 120
