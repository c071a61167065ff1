"""One letter wrong in any name of the real conf/: the right name is suggested."""

import itertools
import random
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_lightning.errors import InputError
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer, leaves
from sae_lightning.run.suggest import did_you_mean, distance, nearest

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("topk", "topk", 0), ("topk", "tpk", 1), ("topk", "otpk", 1), ("topk", "relu", 4), ("", "ab", 2)]
)
def test_distance(a, b, edits):
    assert distance(a, b) == distance(b, a) == edits


def test_nearest():
    assert nearest("lr", ["optimizer.lr", "seed"]) == "optimizer.lr"
    assert nearest("model.z", ["model.k", "data.d", "model.revival"]) == "model.k"
    assert nearest("something else", ["model.k"]) is None
    assert did_you_mean("topkk", ["topk", "relu"]) == "; did you mean topk? (one of: relu, topk)"
    assert did_you_mean("qqqqqq", ["topk", "relu"]) == "; one of: relu, topk"


def mutated(name: str, draw: random.Random) -> str:
    """One letter changed, dropped, doubled by another, or swapped with its neighbour."""
    places = [i for i, letter in enumerate(name) if letter not in "./_"]
    i = draw.choice(places)
    letter = draw.choice(string.ascii_lowercase)
    kinds = [name[:i] + letter + name[i + 1 :], name[:i] + letter + name[i:]]
    if len(re.split(r"[./]", name)[-1]) > 1 or i < len(name) - 1:
        kinds.append(name[:i] + name[i + 1 :])
        if i + 1 in places:
            kinds.append(name[:i] + name[i + 1] + name[i] + name[i + 2 :])
    return draw.choice(kinds)


def place(composer: Composer, group: str) -> list[str]:
    """The choice that a group inside another one needs: data=… for data/transformer."""
    above, _, name = group.rpartition("/")
    if any(group in composer.named(main) for main in ("train", "evaluate")):
        return []
    return [f"{above}={next(o for o in composer.groups[above] if name in composer.named(f'{above}/{o}'))}"] if above else []


def slips(composer: Composer, draw: random.Random) -> Iterator[tuple[list[str], str, str]]:
    """(choices, what was typed, what should be suggested), for every group, every option, and every leaf that a third of the options have."""
    groups = {group: options for group, options in composer.groups.items() if not group.startswith("hydra")}
    names: set[str] = set()
    choices = [[*place(composer, group), f"{group}={option}"] for group, options in groups.items() for option in options]
    for chosen in [[], *choices[::3]]:
        try:
            here = {name for name in leaves(composer.compose(chosen)) if not name.startswith("hydra.")}
        except InputError:  # what conf/ itself has wrong is for test_conf.py
            continue
        for name in sorted(here - names):
            wrong = mutated(name, draw)
            if wrong not in here and all(wrong.split(".")):
                yield chosen, f"{wrong}=1", name
        names |= here
    for group, options in groups.items():
        wrong = mutated(group, draw)
        if wrong not in groups and wrong not in names:
            yield [], f"{wrong}={options[0]}", f"{group}={options[0]}" if "/" not in group else f"{group}=…"
        for option in options:
            wrong = mutated(option, draw)
            if wrong not in options:
                yield [], f"{group}={wrong}", f"{group}={option}"


@pytest.mark.parametrize("config_name", ["train", "evaluate"])
@pytest.mark.slow  # a composition for each option of every group
def test_a_slip_of_one_letter_finds_its_name(config_name):
    composer = Composer(CONF, config_name)
    misses, total = [], 0
    for chosen, word, right in itertools.islice(slips(composer, random.Random(0)), 0, None, 3):
        total += 1
        with pytest.raises(InputError) as caught:
            validate(composer, [*chosen, word])
        said = str(caught.value)
        if not re.search(rf"(did you mean|now;) {re.escape(right)}(?![\w.])", said):
            misses.append(f"{chosen}: {said}")
    print(f"{config_name}: {total - len(misses)} of {total} right")
    assert total > 20
    assert len(misses) <= 0.05 * total, "\n".join(misses)
