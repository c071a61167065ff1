"""The report of a sweep, from folders as its jobs leave them."""

import csv
import json
import math
from pathlib import Path

import pytest

from sae_lightning.errors import InputError
from sae_lightning.evaluation.scores import SCHEMA
from sae_lightning.report.sweep import figures, pareto
from sae_lightning.report.sweep_page import report
from sae_lightning.sweeps import results

METRIC = "val/miracle_distance"


def job(
    folder: Path,
    number: int,
    words: str,
    status: str = "finished",
    *,
    l0: float,
    variance: float,
    distance: float | None,
    kl: float | None = None,
):
    """What a run of two validations leaves."""
    at = folder / f"{number}-name"
    (at / ".hydra").mkdir(parents=True)
    (at / ".hydra/overrides.yaml").write_text(json.dumps(["model=topk", *words.split(), "sweep.n_trials=9"]))
    value = math.nan if distance is None else distance
    metrics = {"val/l0": l0, "val/explained_variance": variance, METRIC: distance}
    (at / "run.json").write_text(
        json.dumps({"status": status, "step": 20, "duration_s": 30.0, "metrics": metrics, "before": [{"duration_s": 6.0}]})
    )
    (at / "metrics.csv").write_text(f"step,metric,value\n10,{METRIC},9\n10,val/l0,3\n20,{METRIC},{value}\n20,{METRIC},{value}\n")
    if kl is not None:
        (at / "scores.json").write_text(
            json.dumps({"schema": SCHEMA, "scores": {"sae": {"kl": kl, "plots": "no number"}, "pca": {"kl": 9.0}}})
        )


def sweep(folder: Path, one_at_a_time: bool = False) -> Path:
    folder.mkdir()
    config = {"optimized_metric": METRIC, "sweep": {"direction": "minimize", "one_at_a_time": one_at_a_time}, "hydra": {}}
    (folder / "multirun.yaml").write_text(json.dumps(config))
    return folder


@pytest.fixture
def searched(tmp_path) -> Path:
    folder = sweep(tmp_path / "a<b")
    job(folder, 10, "model.k=4 optimizer.lr=1e-3 seed=0", l0=4, variance=0.5, distance=2.0, kl=0.5)
    job(folder, 2, "model.k=8 optimizer.lr=1e-2 seed=0", l0=8, variance=0.4, distance=1.0, kl=0.25)
    job(folder, 3, "model.k=16 optimizer.lr=x seed=0", "given up", l0=16, variance=0.75, distance=0.5)
    job(folder, 4, "model.k=32 optimizer.lr=1e-3 seed=0", l0=32, variance=0.625, distance=None)
    return folder


def test_jobs_are_read_in_their_order_with_what_they_differ_in(searched):
    found = results.read(searched)
    assert [job.number for job in found.jobs] == [2, 3, 4, 10]
    assert found.varied == ["model.k", "optimizer.lr"]
    first = found.jobs[0]
    assert (first.settings, first.seconds, first.step) == ({"model.k": 8, "optimizer.lr": 0.01}, 36.0, 20)
    assert (first.metrics["kl"], first.curve) == (0.25, {10: 9.0, 20: 1.0})
    assert found.best is first  # what was given up is better now, and no run to its end
    assert math.isnan(found.jobs[2].metrics[METRIC])


def test_the_csv_has_a_line_for_each_job(searched):
    report(searched)
    with open(searched / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["number"], line["status"], line["model.k"], line["kl"], line["folder"]) for line in lines] == [
        ("2", "finished", "8", "0.25", "2-name"), ("3", "given up", "16", "", "3-name"),
        ("4", "finished", "32", "", "4-name"), ("10", "finished", "4", "0.5", "10-name"),
    ]  # fmt: skip


def test_the_front_is_what_nobody_beats(searched):
    found = results.read(searched).jobs
    assert [job.number for job in pareto(found, "val/explained_variance", is_less_better=False)] == [10, 3]
    assert [job.number for job in pareto([job for job in found if "kl" in job.metrics], "kl", is_less_better=True)] == [10, 2]


def test_the_page_holds_its_pictures_and_their_files_are_beside_it(searched):
    page = report(searched).read_text()
    names = [name for name, _, _ in figures(results.read(searched))]
    assert names == ["l0_explained_variance", "l0_kl", "history", "curves", "slices", "correlations", "parallel"]
    assert page.count("data:image/png;base64,") == len(names)
    for name in names:
        assert (searched / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<title>a&lt;b</title>" in page
    assert "4 jobs: 3 finished, 1 given up;" in page and "2.4 minutes of training." in page
    assert "job 2, val/miracle_distance 1." in page
    assert "<pre>model.k=8 optimizer.lr=0.01</pre>" in page


def test_enough_jobs_are_weighed(tmp_path):
    folder = sweep(tmp_path / "many")
    for number in range(12):  # the objective is the first setting's alone
        job(folder, number, f"model.k={number} seed={number * 7 % 12}", l0=number + 1, variance=0.5, distance=float(number))
    drawn = {name: figure for name, _, figure in figures(results.read(folder))}
    assert bars(drawn["importance"])["model.k"] > 0.8
    assert bars(drawn["correlations"])["model.k"] == pytest.approx(1.0)


def bars(figure) -> dict[str, float]:
    axes = figure.axes[0]
    return {label.get_text(): bar.get_width() for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)}


def test_an_ablation_is_a_table_of_differences(tmp_path):
    folder = sweep(tmp_path / "ablation", one_at_a_time=True)
    job(folder, 0, "model.k=8 optimizer.lr=1e-3", l0=8, variance=0.5, distance=1.0)
    job(folder, 1, "model.k=16 optimizer.lr=1e-3", l0=16, variance=0.75, distance=0.5)
    page = report(folder).read_text()
    assert "<td>baseline: model.k=8</td><td>1</td><td>8</td><td>0.5</td>" in page
    assert "<td>model.k=16</td><td>-0.5</td><td>+8</td><td>+0.25</td>" in page


def test_seeds_are_a_spread(tmp_path):
    folder = sweep(tmp_path / "seeds")
    for number, (k, seed) in enumerate([(4, 0), (4, 1), (8, 0), (8, 1)]):
        job(folder, number, f"model.k={k} seed={seed}", l0=k, variance=0.5, distance=float(k + 2 * seed))
    page = report(folder).read_text()
    assert "<td>4</td><td>2</td><td>5 ± 1.4</td><td>4 ± 0</td>" in page  # 4 and 6: mean 5, deviation √2
    assert "<td>8</td><td>2</td><td>9 ± 1.4</td>" in page


def test_what_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not the folder of a sweep"):
        report(tmp_path)
    with pytest.raises(InputError, match="has no job yet"):
        report(sweep(tmp_path / "empty"))
