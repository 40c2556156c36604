"""Who is next: the waiting observations of all sessions. Knows no threads, and its clock comes from outside."""

from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True)
class Place[T]:
    """One observation that waits.

    Attributes:
      session_id: Whose it is.
      item: What waits.
      since: When it came, seconds of the line's clock.
      seated: When the session got the place, which an observation that supersedes another takes over.
    """

    session_id: str
    item: T
    since: float
    seated: float


class Line[T]:
    """At most one waiting observation per session: the newest. Sessions take turns.

    A newer observation takes over its session's place, so that a robot that sends often neither jumps the queue nor
    loses its turn. A session that was served joins at the end.
    """

    def __init__(self, timeout_seconds: float, clock: Clock) -> None:
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._places: dict[str, Place[T]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def join(self, session_id: str, item: T, waited: float = 0.0) -> Place[T] | None:
        """Lets item, which waited elsewhere before, wait, and returns the place of the older item that it supersedes,
        if there is one."""
        older = self._places.get(session_id)
        since = self._clock() - waited
        self._places[session_id] = Place(session_id, item, since, older.seated if older is not None else since)
        return older

    def leave(self, session_id: str, item: T) -> bool:
        """Takes item out and returns whether it still waited."""
        place = self._places.get(session_id)
        if place is None or place.item is not item:
            return False
        del self._places[session_id]
        return True

    def expired(self) -> list[Place[T]]:
        """Takes out and returns what has waited for the timeout or longer."""
        now = self._clock()
        late = [place for place in self._places.values() if now - place.since >= self._timeout_seconds]
        for place in late:
            del self._places[place.session_id]
        return late

    @property
    def places(self) -> list[Place[T]]:
        """Everyone who waits, in the order of their turns."""
        return list(self._places.values())

    def first(self) -> Place[T] | None:
        """Returns whose turn it is, who goes on waiting."""
        return next(iter(self._places.values()), None)

    def next(self) -> Place[T] | None:
        """Takes out and returns whose turn it is."""
        for session_id in self._places:
            return self._places.pop(session_id)
        return None

    def next_batch(self, most: int, comes_along: Callable[[T], bool]) -> list[Place[T]]:
        """Takes out whose turn it is and, in the order of their turns, who comes along: at most so many together.

        The first always goes, so that nobody waits for longer than there were others before them.
        """
        first = self.next()
        if first is None:
            return []
        along = [place for place in self._places.values() if comes_along(place.item)][: most - 1]
        for place in along:
            del self._places[place.session_id]
        return [first, *along]
