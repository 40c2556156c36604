"""What one direction of a link does to packets."""

import math

import pytest

from bench.links import LINKS, MEGABIT, QUEUE_LEAST_BYTES, SAME_MACHINE, Direction, LinkSpec


def test_a_packet_takes_its_time_on_the_wire_and_the_delay() -> None:
    direction = Direction(delay=0.02, bytes_per_second=1_000_000)
    assert direction.arrival(1000, now=5.0) == pytest.approx(5.0 + 0.001 + 0.02)


def test_packets_queue_behind_each_other() -> None:
    direction = Direction(bytes_per_second=1_000_000)
    arrivals = [direction.arrival(1000, now=0.0) for _ in range(3)]
    assert arrivals == pytest.approx([0.001, 0.002, 0.003])


def test_a_full_queue_loses_packets_and_drains() -> None:
    direction = Direction(bytes_per_second=10_000)
    taken = [direction.arrival(1000, now=0.0) for _ in range(100)]
    assert sum(arrival is not None for arrival in taken) == QUEUE_LEAST_BYTES // 1000
    assert direction.dropped_bytes == (100 - QUEUE_LEAST_BYTES // 1000) * 1000
    assert direction.arrival(1000, now=1.0) is not None


def test_without_a_rate_nothing_queues() -> None:
    direction = Direction(delay=0.01)
    assert [direction.arrival(10_000_000, now=1.0) for _ in range(3)] == pytest.approx([1.01] * 3)


def test_the_order_is_kept_when_the_delay_shrinks() -> None:
    direction = Direction(delay=0.5)
    first = direction.arrival(100, now=0.0)
    direction.delay = 0.1
    second = direction.arrival(100, now=0.1)
    assert first is not None
    assert second is not None
    assert second >= first


def test_loss_is_about_what_was_asked_for_and_repeats() -> None:
    def lost() -> list[bool]:
        direction = Direction(loss=0.1)
        return [direction.arrival(100, now=0.0) is None for _ in range(2000)]

    assert 120 < sum(lost()) < 280
    assert lost() == lost()


def test_silence_loses_everything_until_it_is_over() -> None:
    direction = Direction(silent_until=2.0)
    assert direction.arrival(100, now=1.9) is None
    assert direction.arrival(100, now=2.0) is not None


def test_the_floor_adds_up() -> None:
    link = LinkSpec("x", rtt=0.04, up_mbit=8, down_mbit=80)
    assert link.floor(up_bytes=1e6, down_bytes=1e6, inference=0.1) == pytest.approx(0.04 + 1.0 + 0.1 + 0.1)
    assert SAME_MACHINE.floor(1e9, 1e9, 0.1) == pytest.approx(0.1)


def test_only_links_with_limits_are_emulated() -> None:
    assert [name for name, link in LINKS.items() if not link.emulated] == ["loopback"]
    assert LinkSpec("x", up_mbit=1).emulated
    assert math.isinf(SAME_MACHINE.up_mbit * MEGABIT)
