"""The quality benchmark in small: what it trains, what it chooses by, what a kill leaves."""

import csv
import io
import math
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.testing import assert_close

from benchmarks.quality import table
from benchmarks.quality.__main__ import read, run
from benchmarks.quality.held_out import halves
from benchmarks.quality.plan import OURS, PAIRED, ROOT, Job, architectures, best, is_null, plan, resolved, tolerance, weight
from benchmarks.quality.report import by_seed, chosen, is_within, paired, standard_error
from benchmarks.quality.results import FIELDS, Results, Row
from benchmarks.quality.search import FULL_RUNS, Known, search
from benchmarks.quality.training import Bench
from sae_lightning.errors import InputError
from tests.data.tiny import harvest
from tests.forks import fork, forks, start

TINY = "data.d=16 data.n_directions=64 data.l0=3 data.rows_held_out=1024 data.batch_size=64 dictionary.d_sae=64"


def settings(out: Path, *words: str):
    """topk and lagrangian at two learning rates, topk with two seeds."""
    asked = ["--out", str(out), "--models", "topk,lagrangian", "--steps", "10", "--l0", "4", "--seeds", "2", "--words", TINY]
    return read([*asked, *words])


def begin(out: Path) -> None:
    run(settings(out), fork, Console(quiet=True))


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row(**values: object) -> Row:
    number = dict.fromkeys(FIELDS, math.nan)
    whole = {
        "rows": "synthetic",
        "l0_wanted": 12,
        "library": OURS,
        "model": "topk",
        "seed": 0,
        "steps": 3000,
        "knob": "k",
        "lr": 1e-3,
        "form": "",
    }
    return number | whole | {"l0_validation": 12.0} | values


# Slow: five trainings through the whole configuration, in processes that start anew after the kill.
@pytest.mark.slow
@forks
def test_a_killed_benchmark_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "quality.csv"
    child = start(begin, tmp_path)
    deadline = time.monotonic() + 300
    while (not path.exists() or len(path.read_bytes().splitlines()) < 3) and child.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.join()
    before = path.read_bytes()
    assert 3 <= len(before.splitlines()) < 6, "killed before the end"
    with open(path, "ab") as file:
        file.write(b"synthetic,4,sae_li")  # what a kill in the middle of a line leaves

    assert run(settings(tmp_path), fork, Console(quiet=True)) == 0

    after = path.read_bytes()
    assert after.startswith(before)
    found = lines(path)
    jobs = Counter((line["model"], line["l0_wanted"], line["lr"], line["seed"]) for line in found)
    assert set(jobs.values()) == {1}
    assert {key[:3] for key in jobs} == {(model, "4", lr) for model in ("topk", "lagrangian") for lr in ("0.001", "0.003")}
    assert len(found) == 5
    others = [line for line in found if line["model"] == "topk" and line["seed"] == "1"]
    tuned = [line for line in found if line["model"] == "topk" and line["seed"] == "0"]
    assert [line["lr"] for line in others] == [max(tuned, key=lambda line: float(line["explained_variance_validation"]))["lr"]]
    assert all(float(line["l0"]) == float(line["l0_validation"]) == 4.0 for line in (*tuned, *others))
    assert all(line[name] and not line["kl"] for line in found for name in ("explained_variance", "recovery_f1", "dead_pct", "seconds"))
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert not any((tmp_path / "runs").iterdir())

    run(settings(tmp_path), fork, Console(quiet=True))
    assert path.read_bytes() == after


def test_a_penalty_is_searched_through_whole_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.quality import search as module

    monkeypatch.setattr(module, "PILOTS", 1)
    monkeypatch.setattr(module, "FULL_RUNS", 1)
    plain, job = plan(settings(tmp_path, "--models", "relu", "--lr", "1e-2"))[:2]
    assert (plain.form, job.form) == ("", "unit norm")
    found = Bench(settings(tmp_path)).do(job)
    assert set(found) == set(FIELDS)
    assert (found["knob"], found["form"]) == ("sparsity", "unit norm")
    assert found["knob_value"] < 0.1  # at the weight that conf/model/relu.yaml says, the pilot had fewer than 4 active


def test_a_weight_is_searched_closer_where_libraries_are_compared(tmp_path: Path) -> None:
    asked = settings(tmp_path)
    job = Job("synthetic", 4, OURS, "relu", 1e-3, 0, 10)
    compared, other, usage = job, job._replace(l0=8), job._replace(model="usage_kl")
    assert [tolerance(one, asked) for one in (compared, other, usage)] == [0.025, 0.05, 0.05]


def test_a_usage_is_searched_the_other_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.quality import training

    tried: list[float] = []

    def run(self: Bench, job: Job, value: float, share: float, folder: Path):
        tried.append(value)
        return training.Trained(None, None, {"l0": 64 * value, "explained_variance": 0.5}, 0.0), 64 * value

    monkeypatch.setattr(Bench, "_run", run)
    monkeypatch.setattr(Bench, "score", lambda *_: {})
    (job,) = plan(settings(tmp_path, "--models", "usage_kl", "--lr", "1e-2"))
    found = Bench(settings(tmp_path)).do(job)
    assert (found["knob"], tried[0]) == ("usage", 0.05)
    assert found["knob_value"] == tried[-1] == pytest.approx(4 / 64, rel=0.05)
    again = job._replace(l0=8, needs=(job,))
    assert weight("usage", resolved(again, {job.key: found}).known.points[0][0]) == found["knob_value"]


@forks
def test_a_job_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    console = Console(record=True, file=io.StringIO())
    asked = settings(tmp_path, "--models", "topk", "--l0", "100,4", "--lr", "1e-3", "--seeds", "1")
    assert run(asked, fork, console) == 2
    said = console.export_text()
    assert "model.k" in said and "64" in said  # what it refuses: k of a dictionary with 64 latents
    assert "no learning rate was tuned" in said
    assert lines(tmp_path / "quality.csv") == []


def test_test_rows_choose_nothing() -> None:
    validated = row(lr=1e-3, explained_variance_validation=0.8, explained_variance=0.5)
    other = row(lr=3e-3, explained_variance_validation=0.7, explained_variance=0.9)
    assert best([other, validated]) is validated
    assert chosen([other, validated])[0]["explained_variance"] == 0.5
    first = [job for job in plan(read(["--models", "topk"])) if job.l0 == 12]
    done = {job.key: line for job, line in zip(first, (validated, other), strict=True)}
    assert resolved(Job("synthetic", 8, OURS, "topk", None, 0, 3000, needs=tuple(first)), done).lr == 1e-3


def test_a_form_is_chosen_as_a_learning_rate_is(tmp_path: Path) -> None:
    first = [job for job in plan(read(["--models", "relu", "--seeds", "2"])) if (job.l0, job.seed) == (12, 0)]
    assert [(job.form, job.lr) for job in first] == [("", 1e-3), ("", 3e-3), ("unit norm", 1e-3), ("unit norm", 3e-3)]
    assert [job.needs for job in first] == [(), (first[0],), (), (first[2],)]  # a weight of one form is none of the other
    scores = (0.6, 0.5, 0.7, 0.8)
    lines = [
        row(model="relu", lr=job.lr, form=job.form, knob="sparsity", knob_value=i + 1.0, explained_variance_validation=score)
        for i, (job, score) in enumerate(zip(first, scores, strict=True))
    ]
    done = {job.key: line for job, line in zip(first, lines, strict=True)}
    denser = resolved(Job("synthetic", 24, OURS, "relu", None, 0, 3000, needs=tuple(first)), done)
    assert (denser.lr, denser.form, denser.known.points) == (3e-3, "unit norm", ((4.0, 12.0),))
    assert "relu, unit norm" in str(denser)
    words = Bench(settings(tmp_path)).configuration(denser, None, 1.0, tmp_path)
    assert words.model.unit_norm is True
    seed = row(model="relu", seed=1, lr=3e-3, form="unit norm", explained_variance=0.9)
    assert by_seed([*lines, seed, seed | {"form": "", "explained_variance": 0.1}])[1] == 0.9
    assert table.markdown(lines).splitlines()[2].startswith("| relu | nan (unit norm) |")


def test_of_searched_runs_the_best_is_one_that_has_the_wanted_l0() -> None:
    missed = row(explained_variance_validation=0.9, l0_validation=14.0)
    right = row(explained_variance_validation=0.8, l0_validation=12.5)
    assert best([missed, right]) is right
    assert best([missed]) is missed


def test_validation_and_test_rows_are_the_two_halves(tmp_path: Path) -> None:
    from sae_lightning.data.synthetic import SyntheticDataModule

    data = SyntheticDataModule(d=8, n_directions=16, l0=2, batch_size=96, rows_held_out=1000)
    parts = halves(data)
    validation, test = (torch.cat([batch.x for batch in part.held_out()]) for part in parts)
    assert (len(validation), len(test)) == (500, 500)
    assert_close(torch.cat([validation, test]), torch.cat([batch.x for batch in data.held_out()]), rtol=0, atol=0)


def test_halves_of_a_text_are_whole_sequences(tmp_path: Path) -> None:
    from sae_lightning.data.datamodule import ActivationDataModule

    source = harvest(tmp_path)
    data = ActivationDataModule(source, source.hooks[0], batch_size=32, validation_rows=150, transformer=source.transformer)
    data.prepare_data()
    parts = halves(data)
    ids, _ = data.tokens_held_out(1000)
    for part, tokens in zip(parts, (ids[: len(ids) // 2], ids[len(ids) // 2 :]), strict=True):
        own, special = part.tokens_held_out(1000)
        assert torch.equal(own, tokens)
        assert sum(len(batch.x) for batch in part.held_out()) == int((~special).sum()) > 0
        assert len(part.tokens_held_out(2)[0]) == 2


def test_everything_in_conf_model_is_trained() -> None:
    stories = (Path("model"), Path("text.jsonl"))
    jobs = plan(read(["--stories", *map(str, stories), "--seeds", "5"]))
    assert {(job.rows, job.l0, job.model) for job in jobs} == {
        (rows, l0, model)
        for rows, every in (("synthetic", (12, 8, 24)), ("stories", (32, 16, 64)))
        for l0 in every
        for model in architectures()
    }
    for model in architectures():
        rates = {job.lr for job in jobs if (job.rows, job.l0, job.model, job.seed) == ("synthetic", 12, model, 0)}
        assert rates == ({0.0} if is_null(model) else {1e-3, 3e-3})
    assert {job.model for job in jobs if job.seed == 4} == set(PAIRED) & set(architectures())
    first = max(i for i, job in enumerate(jobs) if job.l0 in (12, 32) and not job.seed)
    seeds = max(i for i, job in enumerate(jobs) if job.seed)
    assert first < seeds < min(i for i, job in enumerate(jobs) if job.l0 not in (12, 32))
    assert len({job.key for job in jobs}) == len(jobs)


@pytest.mark.parametrize("steepness", [-0.5, -1.0, -2.5])
@pytest.mark.parametrize("shift", [0.7, 1.0, 1.5])
def test_a_weight_is_found_where_short_runs_are_denser_or_sparser(steepness: float, shift: float) -> None:
    shares: list[float] = []

    def train(weight: float, share: float) -> tuple[float, float]:
        shares.append(share)
        return weight, 20 * (weight / 0.1) ** steepness * (shift if share < 1 else 1)

    found = search(train, 12.0, 0.3, 0.05)
    l0 = train(found.weight, 0.0)[1] / shift
    assert l0 == pytest.approx(12, rel=0.05)
    assert found.result == found.weight
    assert shares.count(1.0) == found.full_runs <= 3
    shares.clear()
    assert search(train, 6.0, 0.3, 0.05, Known(((found.weight, l0),), steepness)).full_runs == 1
    again = search(train, 6.0, 0.3, 0.05, Known(((found.weight, l0),), found.steepness))
    assert train(again.weight, 1.0)[1] == pytest.approx(6, rel=0.05)
    assert set(shares) == {1.0}  # no pilots where something is known


def test_trainings_that_differ_in_the_weight_alone_hold_the_target_from_one_side() -> None:
    """L0 is steeper below a weight of 0.1 than it was found to be above."""

    def train(weight: float, share: float) -> tuple[float, float]:
        return weight, 12 * (weight / 0.1) ** (-2 if weight < 0.1 else -0.4)

    found = search(train, 24.0, 1.0, 0.05, Known(((0.1, 12.0),), -0.4, is_same=True))
    assert found.full_runs == 2
    assert found.weight == pytest.approx(0.1 / math.sqrt(2))
    assert search(train, 24.0, 1.0, 0.05, Known(((0.1, 12.0),), -0.4)).full_runs > 2


def test_what_cannot_be_reached_gives_the_nearest() -> None:
    found = search(lambda weight, share: (weight, 40 + 10 / (1 + weight)), 12.0, 1.0, 0.05)
    assert found.full_runs == FULL_RUNS
    assert found.weight > 10


def test_the_comparison_is_paired_over_seeds() -> None:
    # Differences −0.002, 0.000, 0.002: mean 0, standard error 0.002/√3 = 0.00115; t of 2 degrees at 95 % is 2.920: 0.0034 below.
    ours, theirs = [0.878, 0.880, 0.882], [0.880, 0.880, 0.880]
    made = [row(seed=i, explained_variance=v, explained_variance_validation=v) for i, v in enumerate(ours)]
    made += [row(seed=i, explained_variance=v, explained_variance_validation=v, library="peer") for i, v in enumerate(theirs)]
    compared = paired(made)
    assert compared is not None
    assert [next(iter(column.cells)) for column in compared.columns][1:] == ["0.8800", "0.8800 peer", "+0.0000", "0.0012", "3", "yes"]
    assert standard_error([-0.002, 0.0, 0.002]) == pytest.approx(0.002 / math.sqrt(3))
    assert not is_within(-0.002, 0.00115, 3)


def test_a_csv_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quality.csv").write_text("model,lr\n")
    with pytest.raises(InputError, match="another version"):
        Results(tmp_path / "quality.csv")


def test_other_words_are_refused_beside_old_lines(tmp_path: Path) -> None:
    asked = settings(tmp_path)._replace(models=())
    run(asked, fork, Console(quiet=True))
    with pytest.raises(InputError, match="was begun with"):
        run(asked._replace(words=()), fork, Console(quiet=True))


def test_the_readme_shows_what_was_kept() -> None:
    """The table is that of the csv; what others reached is shown beside ours over the same seeds."""
    shown = table.between((ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown == table.markdown(Results(table.KEPT).rows())
    assert table.PICTURE.exists()


def test_a_line_of_the_table(tmp_path: Path) -> None:
    ours = [row(seed=i, explained_variance=0.88 + i / 100, explained_variance_validation=0.9) for i in range(3)]
    theirs = [row(seed=i, explained_variance=0.8, explained_variance_validation=0.8, library="peer") for i in range(2)]
    missed = row(l0_wanted=8, l0_validation=12.0, l0=11.5, explained_variance=0.5, explained_variance_validation=0.5)
    lines = table.markdown([*ours, *theirs, missed]).splitlines()
    assert lines[0] == "| explained variance | synthetic, L0 8 | synthetic, L0 12 | best other library, synthetic, L0 12 |"
    assert lines[2] == f"| {ours[0]['model']} | 0.500 (L0 11.5) | 0.880 | peer 0.8000, ours 0.8850 (2 seeds) |"
