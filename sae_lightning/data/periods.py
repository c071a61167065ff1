"""Which sequences of a text are in the pool when rows come without a store. Arithmetic only; nothing is read."""

from typing import NamedTuple

UNITS = 6
"""Of a full pool; half of them are left when it is filled again."""


class Place(NamedTuple):
    """A period of a pass of the text, both numbered from 0."""

    pass_: int
    period: int


class Layout:
    """A pass of a text, sequences `first` … `stop` − 1, cut into chunks, and those into parts.

    A pass is cut into units of equal length, of which `UNITS` are at most `pool_rows` tokens (one sequence each, at least). Chunk −2 is one
    unit, chunk −1 two, and each of those that follow, 0 … `chunks` − 1, three. A chunk's rows are cut at random into as many parts as it
    has units. Part j of chunk g is delivered in period g + j, the parts of one period mixed:

        period             0   1   2   3        So when period p begins, all of chunk p is in the pool, two parts of chunk p − 1 and one
        chunk −2           2                    of chunk p − 2: six, it is full. Three are delivered, and when half is left, the next chunk
        chunk −1           1   2                is read. The last period, `chunks`, has no chunk of its own: it delivers the three parts
        chunk 0            0   1   2            that are left, while the first two chunks of the next pass, which are three units, fill
        chunk 1                0   1   2        the pool again. A pass is over before the next one begins.
    """

    def __init__(self, first: int, stop: int, context_length: int, pool_rows: int):
        self.first, self.sequences = first, stop - first
        most = max(1, pool_rows // (UNITS * context_length))
        self.chunks = max(1, -(-self.sequences // (3 * most)) - 1)
        self.units = 3 * (self.chunks + 1)
        self.capacity = UNITS * -(-self.sequences // self.units) * context_length
        """Rows that the pool holds at most."""

    def parts(self, chunk: int) -> range:
        """Of a chunk, by number."""
        return range(max(0, -chunk), 3)

    def span(self, chunk: int) -> tuple[int, int]:
        """First sequence of a chunk, and the one after its last."""
        unit = {-2: 0, -1: 1}.get(chunk, 3 * chunk + 3)
        return self._start(unit), self._start(unit + len(self.parts(chunk)))

    def chunks_in(self, period: int) -> dict[int, range]:
        """What is in the pool when a period begins: chunks of its own pass, and their parts that were not delivered."""
        return {chunk: range(max(period - chunk, 0), 3) for chunk in range(max(period - 2, -2), min(period + 1, self.chunks))}

    def _start(self, unit: int) -> int:
        return self.first + self.sequences * unit // self.units
