"""Names that are given from one half of the contexts and scored on the other."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch

from sae_lightning.errors import InputError
from tests.evaluation.conftest import rows, sae  # noqa: F401 (fixtures)
from tests.evaluation.words import EMBEDDED, Words

D, CONTEXT, SEQUENCES = 16, 20, 60


@pytest.fixture
def data(rows):  # noqa: F811
    """Latent i of the identity is active at the word wi, a number for each occurrence; w16 and above wake no latent."""
    g = torch.Generator().manual_seed(0)
    transformer = Words([f"w{i}" for i in range(24)])
    ids = torch.randint(2, 26, (SEQUENCES, CONTEXT), generator=g)
    ids[:, 0] = 0
    words = ids[ids != 0] - 2
    x = torch.zeros(len(words), D)
    awake = words < D
    x[awake.nonzero()[:, 0], words[awake]] = 1 + torch.rand(int(awake.sum()), generator=g)
    return rows(x, transformer=transformer, hook=EMBEDDED, tokens=ids, special=ids == 0)


@pytest.fixture
def written(data, sae, tmp_path: Path) -> Path:  # noqa: F811
    from sae_lightning.report.naming import write

    return write(sae(torch.eye(D)), data, tmp_path / "naming", latents=6)


def fill(folder: Path, name, fits) -> None:
    """names.csv with name(latent), marks.csv with fits(latent, context)."""
    for file, column, value in (("names.csv", "name", lambda line: name(line["latent"])),
                                ("marks.csv", "fits", lambda line: fits(line["latent"], line["context"]))):  # fmt: skip
        with open(folder / file, newline="", encoding="utf-8") as lines:
            found = list(csv.DictReader(lines))
        with open(folder / file, "w", newline="", encoding="utf-8") as lines:
            made = csv.DictWriter(lines, found[0].keys())
            made.writeheader()
            made.writerows(line | {column: value(line)} for line in found)


def peak(context: str) -> str:
    found = re.search(r"»(.*?)«", context)
    assert found is not None
    return found[1].strip()


def test_a_right_name_is_found_right(written):
    """Who knows that latent 3 is the word w3 marks each context rightly."""
    from sae_lightning.report.naming import score

    fill(written, lambda latent: f"the word w{latent}", lambda latent, context: "1" if peak(context) == f"w{latent}" else "0")
    found = score(written)
    assert len(found) == 6
    assert all((one.precision, one.recall, one.f1) == (1, 1, 1) for one in found)


def test_a_name_that_fits_all_has_precision_one_half(written):
    from sae_lightning.report.naming import score

    fill(written, lambda latent: "a word", lambda latent, context: "1")
    assert all((one.precision, one.recall) == (0.5, 1) for one in score(written))


def test_precision_and_recall_by_hand(written):
    """Of latent's n own contexts one is missed, and two others are taken for its own: precision (n − 1)/(n + 1), recall (n − 1)/n."""
    from sae_lightning.report.naming import score

    answers = json.loads((written / "answers.json").read_text())["own"]
    with open(written / "marks.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    latent = lines[0]["latent"]
    own = [line["number"] for line in lines if line["latent"] == latent and answers[int(line["number"])]]
    others = [line["number"] for line in lines if line["latent"] == latent and not answers[int(line["number"])]]
    said = {*own[1:], *others[:2]}
    with open(written / "marks.csv", "w", newline="", encoding="utf-8") as file:
        made = csv.DictWriter(file, lines[0].keys())
        made.writeheader()
        made.writerows(line | {"fits": "" if line["latent"] != latent else "1" if line["number"] in said else "0"} for line in lines)
    fill_names = written / "names.csv"
    fill_names.write_text(fill_names.read_text().replace(f"{latent},", f"{latent},something"))
    (one,) = score(written)
    n = len(own)
    assert (one.latent, one.name) == (int(latent), "something")
    assert one.precision == pytest.approx((n - 1) / (n + 1))
    assert one.recall == pytest.approx((n - 1) / n)


def test_halves_share_no_sequence_and_silent_tokens_are_silent(written, data):
    text = (written / "contexts.md").read_text()
    assert "## latent" in text
    answers = json.loads((written / "answers.json").read_text())
    with open(written / "marks.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(answers["own"])
    assert sum(answers["own"]) * 2 == len(lines)
    shown = set(re.findall(r"  (\S*».*)", text))
    assert not shown & {line["context"] for line in lines}
    for line, is_own in zip(lines, answers["own"], strict=True):
        assert (peak(line["context"]) == f"w{line['latent']}") == is_own


def test_what_somebody_wrote_is_not_overwritten(written, data, sae):  # noqa: F811
    from sae_lightning.report.naming import write

    with pytest.raises(InputError, match="is there already"):
        write(sae(torch.eye(D)), data, written)


def test_bad_files_are_refused(written, tmp_path, capsys):
    from sae_lightning.report.naming import main, score

    with pytest.raises(InputError, match="fill them in"):
        score(written)
    fill(written, lambda latent: "x", lambda latent, context: "maybe")
    with pytest.raises(InputError, match="'maybe': write 1, 0 or nothing"):
        score(written)
    (written / "marks.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="must have the columns"):
        score(written)
    assert main(["score", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["write", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_too_few_activations_are_said(data, sae, tmp_path):  # noqa: F811
    from sae_lightning.report.naming import write

    data.x[:] = -1
    data.x[0, 0] = 1
    with pytest.raises(InputError, match="no latent is active 8 times in each half"):
        write(sae(torch.eye(D)), data, tmp_path / "naming")
