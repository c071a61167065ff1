"""The search space: words with several values, of conf/sweep/space and of the command, as every engine reads them."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer

from sae_lightning.errors import InputError
from sae_lightning.run.composer import parsed, unsaid

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = str | int | float | bool | None


class Choice(NamedTuple):
    """One of a few values. `words`: how each is written on a command line."""

    words: dict[Value, str]

    def values(self) -> list[Value]:
        return list(self.words)

    def word(self, value: Value) -> str:
        return self.words[value]

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values())


class Interval(NamedTuple):
    """From `low` to `high`, both included. `step`: only low + n · step; None: all between. `is_integer`: integers only."""

    low: float
    high: float
    step: float | None
    is_integer: bool
    is_log: bool

    def values(self) -> list[float]:
        """Errors: InputError where there are infinitely many."""
        if self.step is None:
            raise InputError(f"interval({self.low}, {self.high}) has no single values: write choice(…) or range(…) for a grid")
        n = math.floor((self.high - self.low) / self.step + 1e-9)
        return [self.low + i * self.step for i in range(n + 1)]

    def word(self, value: Value) -> str:
        return repr(value)

    def distribution(self) -> "BaseDistribution":
        from optuna import distributions as d

        low, high = self.low, self.high
        if self.is_integer:
            low, high = int(low), int(high)
            return d.IntLogUniformDistribution(low, high) if self.is_log else d.IntUniformDistribution(low, high, int(self.step or 1))
        if self.is_log:
            return d.LogUniformDistribution(low, high)
        return d.UniformDistribution(low, high) if self.step is None else d.DiscreteUniformDistribution(low, self.values()[-1], self.step)


Dimension = Choice | Interval
Space = dict[str, Dimension]


def split(words: Iterable[str], space: Mapping[str, str]) -> tuple[Space, list[str]]:
    """What is searched, and the words that say one thing. What the command says of a key stands instead of what `space` says.

    Errors: InputError for a word that cannot be read, and for values that are no text, number or truth value.
    """
    typed = [parsed(word) for word in words]
    searched = [parsed(word) for word in unsaid(space, typed)]
    found = {o.get_key_element(): dimension(o) for o in [*searched, *typed] if o.is_sweep_override()}
    fixed = [str(o.input_line) for o in [*searched, *typed] if not o.is_sweep_override()]
    return found, fixed


def dimension(override: Override) -> Dimension:
    """Errors: InputError."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None and high is not None
        if low >= high:
            raise InputError(f"{override.input_line}: an interval goes from less to more")
        is_log = "log" in value.tags
        if is_log and low <= 0:
            raise InputError(f"{override.input_line}: on a logarithmic scale an interval begins above 0")
        is_integer = isinstance(low, int) and isinstance(high, int)
        return Interval(low, high, 1 if is_integer and not is_log else None, is_integer, is_log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = [one for one in override.sweep_iterator() if isinstance(one, int | float)]
        step = float(value.step) if isinstance(value.step, float) else int(value.step)
        if len(numbers) > 1 and step > 0:
            return Interval(numbers[0], numbers[-1], step, all(isinstance(n, int) for n in numbers), False)
    return Choice({_plain(one, word := _word(one)): word for one in override.sweep_iterator()})


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(Transformer.str(value))


def _plain(value: Any, word: str) -> Value:
    """Text, a list or a mapping is known as it is written."""
    return value if value is None or isinstance(value, int | float | bool) else word
