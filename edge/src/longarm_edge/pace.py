"""Whether answers come fast enough for the arm to move without standing between chunks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How fast answers come, against how long a chunk lasts.

    Attributes:
      typical: What most answers take from capture to merge, in seconds.
      slowest: What the slow ones take, if there is more than one of them.
      chunk_size: Actions of a chunk.
      limit: What actions_per_chunk limits a chunk to; 0: nothing.
      fps: Steps per second while the arm moves.
      max_action_age: Seconds from capture after which an action is not executed.
    """

    typical: float
    slowest: float
    chunk_size: int
    limit: int
    fps: float
    max_action_age: float

    @property
    def slow(self) -> bool:
        """Whether the arm stands between chunks, and yet plays something of each.

        What rests on one observation has to last until the answer to the next one is there. That one is captured when
        the first is answered: one answer later, and another.
        """
        return self.typical < self.max_action_age and (self._too_short or self._cut)

    @property
    def _too_short(self) -> bool:
        return self.chunk_size / self.fps < self.typical + self.slowest

    @property
    def _cut(self) -> bool:
        """Whether max_action_age ends a chunk before it is over, or the next one is there."""
        return self.max_action_age < self.typical + min(self.slowest, self.chunk_size / self.fps)

    def advice(self) -> str:
        """Returns why the arm stands between chunks, with the numbers, and what would help."""
        why = [f"an answer takes {self.typical:.2f} s, and {self.slowest:.2f} s if it is slow"]
        helps = ["a faster GPU", "one nearer by"]
        if self._too_short:
            why.append(f"the {self.chunk_size} actions of a chunk last {self.chunk_size / self.fps:.2f} s")
            helps += [f"more actions than actions_per_chunk={self.limit}"] if self.limit else []
            helps.append("a policy with longer chunks")
        if self._cut:
            why.append(
                f"actions older than safety.max_action_age={self.max_action_age:g} s are not executed, which cuts each "
                "chunk"
            )
            helps.append("a larger safety.max_action_age")
        return (
            f"the arm plays a chunk, stands, and plays the next: {'; '.join(why)}. "
            f"What would help: {', '.join(helps[:-1])}, or {helps[-1]}"
        )
