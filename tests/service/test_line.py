"""Who is next, without threads: the clock stands still unless the test moves it."""

from hypothesis import given
from hypothesis import strategies as st
from tests.service.fakes import Clock

from longarm_service.line import Line

TIMEOUT = 2.0


def line(clock: Clock | None = None) -> Line[object]:
    return Line(TIMEOUT, clock or Clock())


def served(waiting: Line[object]) -> list[object]:
    places = []
    while (place := waiting.next()) is not None:
        places.append(place.item)
    return places


def test_serves_in_order_of_arrival() -> None:
    waiting = line()
    for session in ("a", "b", "c"):
        assert waiting.join(session, session.upper()) is None
    assert len(waiting) == 3
    assert served(waiting) == ["A", "B", "C"]
    assert waiting.next() is None


def test_the_newest_of_a_session_supersedes_and_keeps_its_place() -> None:
    """A robot that sends often must neither jump the queue nor lose its turn for ever."""
    waiting = line()
    waiting.join("a", "old")
    waiting.join("b", "B")
    older = waiting.join("a", "new")
    assert older is not None
    assert older.item == "old"
    assert served(waiting) == ["new", "B"]


def test_a_session_that_was_served_joins_at_the_end() -> None:
    waiting = line()
    waiting.join("a", "A1")
    waiting.join("b", "B1")
    first = waiting.next()
    waiting.join("a", "A2")
    assert first is not None
    assert [first.item, *served(waiting)] == ["A1", "B1", "A2"]


def test_what_waited_for_the_timeout_is_taken_out() -> None:
    clock = Clock()
    waiting = line(clock)
    waiting.join("a", "A")
    clock.now += 1.5
    waiting.join("b", "B")
    assert waiting.expired() == []
    clock.now += 0.5
    assert [place.item for place in waiting.expired()] == ["A"]
    assert served(waiting) == ["B"]


def test_a_superseding_observation_waits_anew() -> None:
    clock = Clock()
    waiting = line(clock)
    waiting.join("a", "old")
    clock.now += 1.9
    waiting.join("a", "new")
    clock.now += 1.9
    assert waiting.expired() == []


def test_a_superseding_observation_sits_where_the_older_one_sat() -> None:
    """Or one who sends often would let those who wait for company with them wait for ever."""
    clock = Clock()
    waiting = line(clock)
    waiting.join("a", "old")
    seated = clock.now
    for _ in range(3):
        clock.now += 0.5
        waiting.join("a", "new")
    first = waiting.next()
    assert first is not None
    assert (first.seated, first.since) == (seated, clock.now)
    waiting.join("a", "newest")
    assert [place.seated for place in waiting.places] == [clock.now]


def test_what_waited_elsewhere_has_waited() -> None:
    clock = Clock()
    waiting = line(clock)
    waiting.join("a", "A", waited=1.5)
    clock.now += 0.5
    assert [place.item for place in waiting.expired()] == ["A"]


def test_leaving_takes_out_nothing_but_oneself() -> None:
    waiting = line()
    waiting.join("a", "old")
    waiting.join("a", "new")
    assert not waiting.leave("a", "old")
    assert len(waiting) == 1
    assert waiting.leave("a", "new")
    assert not waiting.leave("a", "new")
    assert len(waiting) == 0


@given(st.lists(st.one_of(st.sampled_from("abcd"), st.none())))
def test_turns_are_fair_and_nothing_is_lost_or_answered_twice(events: list[str | None]) -> None:
    """A letter: that session sends. None: the policy is free and takes the next."""
    waiting = line()
    ended: list[int] = []
    newest: dict[str, int] = {}
    served_since: dict[str, set[str]] = {}
    for number, session in enumerate(events):
        if session is not None:
            older = waiting.join(session, number)
            if older is None:
                served_since[session] = set()
            else:
                ended.append(older.item)  # type: ignore[arg-type]
            newest[session] = number
        elif (place := waiting.next()) is not None:
            ended.append(place.item)  # type: ignore[arg-type]
            assert newest[place.session_id] == place.item
            for others, seen in served_since.items():
                if others != place.session_id:
                    # Nobody is served twice while another waits
                    assert place.session_id not in seen or not waiting.leave(others, newest[others])
                    seen.add(place.session_id)
            served_since.pop(place.session_id, None)
    ended += served(waiting)  # type: ignore[arg-type]
    assert len(ended) == len(set(ended))


@given(st.lists(st.one_of(st.sampled_from("abcdEFGH"), st.none())), st.integers(1, 4))
def test_batches_are_of_one_group_and_keep_nobody_waiting(events: list[str | None], most: int) -> None:
    """A letter: that session sends, small ones and capitals with another policy each. None: the policy is free."""
    waiting = line()
    # How many were before a session when it came, less the batches since
    before: dict[str, int] = {}
    sent, ended = 0, 0
    for session in [*events, *[None] * 8]:
        if session is not None:
            sent += 1
            if waiting.join(session, session) is None:
                before[session] = len(waiting) - 1
            else:
                ended += 1
            continue
        first = waiting.first()
        batch = waiting.next_batch(most, lambda item, of=first: of is not None and item.islower() == of.item.islower())
        served = [place.session_id for place in batch]
        assert len(served) <= most
        assert len(set(served)) == len(served)
        assert len({name.islower() for name in served}) <= 1
        assert bool(served) == bool(before)
        for name in served:
            del before[name]
        before = {name: count - 1 for name, count in before.items()}
        assert all(count >= 0 for count in before.values()), "somebody was passed over too often"
        ended += len(served)
    assert ended == sent, "nothing is lost or answered twice"
