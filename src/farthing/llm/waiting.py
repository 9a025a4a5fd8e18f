"""Those who wait, in lines, each in its order; who of all is next decides `scheduler`."""

from collections import deque

from farthing.llm.generation import Generation
from farthing.llm.scheduler import NEW, PREEMPTED, LineKey, Progress


class Waiting:
    """Lines by rank, by whether they ran before, and by tenant."""

    def __init__(self) -> None:
        self.lines: dict[LineKey, deque[Progress]] = {}
        """No line is empty. To be read only."""
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, one: Generation) -> None:
        """A new generation, behind its like."""
        self.lines.setdefault(LineKey(one.rank, NEW, one.tenant), deque()).append(one)
        self.count += 1

    def add_admitted(self, one: Generation) -> None:
        """One that had its turn: it lost its blocks, or found no place beside the others of its request."""
        line = self.lines.setdefault(LineKey(one.rank, PREEMPTED, ""), deque())
        at = 0
        while at < len(line) and line[at].admission < one.admission:
            at += 1
        line.insert(at, one)
        self.count += 1

    def remove(self, one: Generation) -> None:
        """Takes out one that is admitted, or ends."""
        for key in (LineKey(one.rank, NEW, one.tenant), LineKey(one.rank, PREEMPTED, "")):
            line = self.lines.get(key)
            if line is None:
                continue
            try:
                line.remove(one)
            except ValueError:
                continue
            if not line:
                del self.lines[key]
            self.count -= 1
            return
        raise AssertionError("not waiting")

    def check_integrity(self) -> list[Generation]:
        """Asserts that the count agrees with the lines; answers everyone (for tests and simulations)."""
        everyone = []
        for line in self.lines.values():
            assert line, "no line is empty"
            for one in line:
                assert isinstance(one, Generation)
                everyone.append(one)
        assert len({id(one) for one in everyone}) == len(everyone) == self.count
        return everyone
