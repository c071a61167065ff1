"""Where the sequences of a text begin, found once for all who read a part of it."""

import itertools
import json
import logging
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from sae_lightning.data.packing import BEGINNING, Place, located
from sae_lightning.data.text import Documents, Text
from sae_lightning.errors import InputError
from sae_lightning.files import write_json
from sae_lightning.transformers.base import Transformer

log = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 5.0
SECONDS_BETWEEN_LOOKS = 1.0


class Known(NamedTuple):
    """Of sequences by number: where they begin, and a checksum of their token ids. `end`: how many the text has, once that is seen."""

    places: dict[int, tuple[Place, int]]
    end: int | None = None

    def leads_to(self, sequence: int) -> bool:
        """Whether nothing in front of it has to be read to find it, or to know that there is none."""
        return sequence <= max(self.places, default=0) or (self.end is not None and sequence >= self.end)


class PlacedText(Text):
    """The same sequences as those of `text`. What lies before the one that is asked for is tokenised once, whoever asks again.

    The place of every `every`th sequence up to it is kept in the file `path`, with what identifies the text and its tokenizer. Of processes
    that want places that nobody knows yet, on one machine or several, one looks for them; the others wait until theirs is found.

    Errors: InputError where a place no longer holds the sequence that was found there.
    """

    def __init__(self, text: Documents, path: Path, every: int):
        super().__init__(text.prepend_bos)
        self.text, self.name, self.path, self.every = text, text.name, path, every

    def identity(self) -> dict[str, Any]:
        return self.text.identity()

    def check(self) -> None:
        self.text.check()

    def sequences(self, transformer: Transformer, context_length: int, start: int, seed: int) -> Iterator[list[int]]:
        known = self._reaching(start, transformer, context_length)
        if known.end is not None and start >= known.end:
            return iter(())
        nearest = max((number for number in known.places if number <= start), default=0)
        sequences = (ids for _, ids in self._from(nearest, known, transformer, context_length))
        return itertools.islice(sequences, start - nearest, None)

    def _from(self, number: int, known: Known, transformer: Transformer, context_length: int) -> Iterator[tuple[Place, list[int]]]:
        """Sequences number `number`, which is known or 0, and those after it, with their places."""
        place, checksum = known.places.get(number, (BEGINNING, None))
        found = located(self.text.numbered(place.document), transformer, context_length, self.prepend_bos, place)
        first = next(found, None)
        if checksum is not None and (first is None or _checksum(first[1]) != checksum):
            raise InputError(
                f"the text '{self.name}' is no longer what it was: sequence {number} is not the one that {self.path} was made with; bring it "
                f"back, or delete {self.path.parent} and harvest all parts again"
            )
        if first is not None:
            yield first
            yield from found

    # -- the file ---------------------------------------------------------------------------------------------------

    def _reaching(self, sequence: int, transformer: Transformer, context_length: int) -> Known:
        """What is known, when that leads to a sequence; finds it out where this process is the one to do so."""
        of = _plain(
            {
                "text": self.text.identity(),
                "prepend_bos": self.prepend_bos,
                "transformer": transformer.identity(),
                "context_length": context_length,
            }
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock, has_said = FileLock(self.path.with_name(f".{self.path.name}.lock")), False
        while not (known := self._read(of)).leads_to(sequence):
            try:
                with lock.acquire(timeout=0):
                    return self._extended(self._read(of), sequence, of, transformer, context_length)
            except Timeout:
                if not has_said:
                    log.info("waiting for another process to find where sequence %d of '%s' begins", sequence, self.name)
                has_said = True
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return known

    def _extended(self, known: Known, sequence: int, of: dict[str, Any], transformer: Transformer, context_length: int) -> Known:
        """Reads on from the last place that is known until `sequence` begins, or the text ends. The caller holds the lock."""
        if known.leads_to(sequence):
            return known
        first = max(known.places, default=0)
        log.info("finding where sequence %d of '%s' begins, from sequence %d on; parts that come after use it", sequence, self.name, first)
        number, written = first - 1, time.monotonic()
        for number, (place, ids) in enumerate(self._from(first, known, transformer, context_length), first):
            if number % self.every == 0 or number == sequence:
                known.places[number] = (place, _checksum(ids))
            if number == sequence:
                break
            if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                self._write(known, of)
                written = time.monotonic()
        else:
            known = Known(known.places, number + 1)
        self._write(known, of)
        return known

    def _read(self, of: dict[str, Any]) -> Known:
        """Nothing where there is no such file, or one of something else."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["of"] != of:
                return Known({})
            places = {int(number): (Place(int(d), int(o)), int(c)) for number, d, o, c in content["places"]}
            return Known(places, content["end"])
        except (OSError, ValueError, KeyError, TypeError):
            return Known({})

    def _write(self, known: Known, of: dict[str, Any]) -> None:
        places = [[number, *place, checksum] for number, (place, checksum) in sorted(known.places.items())]
        write_json(self.path, {"of": of, "end": known.end, "places": places})


def _checksum(ids: list[int]) -> int:
    return zlib.crc32(",".join(map(str, ids)).encode())


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
