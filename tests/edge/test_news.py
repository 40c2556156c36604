"""An observation that was handed out before is none, unless the driver always hands out the same one."""

import pytest

from longarm_edge import news
from longarm_edge.news import News


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(news.time, "monotonic", lambda: now[0])
    return now


def test_the_same_one_is_waited_with_for_a_while(clock: list[float]) -> None:
    seen, first, second = News(repeats=False), {"pan.pos": 1.0}, {"pan.pos": 1.0}
    assert seen.is_new(first)
    assert seen.is_new(second), "an arm may stand still"
    clock[0] += 0.2
    assert not seen.is_new(second)
    clock[0] += 0.2
    with pytest.raises(ConnectionError, match=r"nothing new for more than 0.3 s"):
        seen.is_new(second)
    assert seen.is_new({"pan.pos": 1.0})


def test_a_driver_that_writes_to_one_object_is_believed(clock: list[float]) -> None:
    seen, only = News(repeats=False), {"pan.pos": 1.0}
    for _ in range(3):
        assert seen.is_new(only)
        clock[0] += 1.0


def test_one_that_is_known_to_repeat_itself_is_not_believed_from_the_start(clock: list[float]) -> None:
    seen, first = News(repeats=True), {"pan.pos": 1.0}
    assert [seen.is_new(first), seen.is_new(first)] == [True, False]
