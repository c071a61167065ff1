"""The nearest valid name."""

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that the user most likely meant, or None where nothing is near.

    By edit distance; ties go to the name with the longer common pieces (difflib's ratio). A dotted or slashed name is also
    near when its last part alone is what was typed: `lr` finds `optimizer.lr`.
    """
    best = min(((*cost(word, name), name) for name in set(names)), default=None)
    if best is None or (best[0] > max(1, len(word) // 3) and best[1] > -0.6):
        return None
    return best[2]


def did_you_mean(word: str, names: Iterable[str], shown: str = "{}", limit: int = 12) -> str:
    """ "; did you mean …?", with all names where they are few, or where none is near. Empty where there are no names."""
    names = sorted(set(names))
    found = nearest(word, names)
    listed = f"one of: {', '.join(names)}" if 0 < len(names) <= limit else ""
    if found is None:
        return f"; {listed}" if listed else ""
    return f"; did you mean {shown.format(found)}?" + (f" ({listed})" if listed else "")


def distance(a: str, b: str) -> int:
    """Edits from a to b: insertions, deletions, substitutions, swaps of neighbours (optimal string alignment)."""
    before: list[int] = []
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, above = above, row
    return above[-1]


def cost(word: str, name: str) -> tuple[float, float]:
    """How far a name is from what was typed: edits, then minus difflib's ratio; the less the nearer."""
    edits: float = distance(word, name)
    last = name.replace("/", ".").rpartition(".")[2]
    if last != name and "." not in word and "/" not in word:
        edits = min(edits, distance(word, last) + 0.5)
    return edits, -difflib.SequenceMatcher(None, word, name).ratio()
