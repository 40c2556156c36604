"""Hostile and careless clients beside a robot that streams: it must not notice. Longer: python -m tests.attacks."""

from collections.abc import Iterator

import pytest

from tests.attacks.arena import Arena
from tests.attacks.attacks import FAMILIES

SECONDS = 3.0


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with Arena(tmp_path_factory.mktemp("arena")) as arena:
        yield arena


@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_robot_does_not_notice(arena: Arena, family: str) -> None:
    finding, problems = arena.judged(family, SECONDS, attempts=3)
    assert not problems, "\n".join([*problems, str(finding), str(arena.quiet)])
