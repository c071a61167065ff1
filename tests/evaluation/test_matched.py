"""The comparison at the same L0: planted differences, what is missing, the command on folders as sweeps leave them, and one real run."""

import csv
import json
import math
import random
import statistics
from pathlib import Path

import pytest

from sae_lightning.errors import InputError
from sae_lightning.evaluation.comparison import Comparison, compare
from sae_lightning.evaluation.matched import Sweep, main, plan, read
from sae_lightning.evaluation.scores import SCHEMA
from sae_lightning.sweeps import results
from sae_lightning.sweeps.results import Result, Results
from tests.runs import ROOT, SMALL

KNOB = {"topk": "model.k", "jumprelu": "model.target_l0", "relu": "model.sparsity"}


def job(
    model: str, knob: float, seed: int, score: float | None, *, lr=1e-3, l0: float | None = None, val: float | None = None, **more
) -> Result:
    """Finished, unless `score` is None. Validated as scored, unless `val` says otherwise."""
    l0 = knob if l0 is None else l0
    values = {"l0": l0, "explained_variance": score, "val/l0": l0, "val/explained_variance": score if val is None else val}
    settings = {"model": model, KNOB[model]: knob, "seed": seed, "optimizer.lr": lr, **more.pop("settings", {})}
    status = more.pop("status", "failed" if score is None else "finished")
    return Result(0, Path("job"), status, 1, 1.0, settings, {} if score is None else values | more, {})


def sweep(*jobs: Result) -> Results:
    return Results(Path("sweep"), {}, False, list(jobs), {})


def compared(*jobs: Result, l0=(8,), metric="explained_variance", is_less_better=False) -> Comparison:
    return compare([sweep(*jobs)], metric, is_less_better, l0)


def planted(rng: random.Random, advantage: float, seeds: int = 5, noise: float = 0.005) -> list[Result]:
    """Scores that rise with log L0, and by seed, which both have; jumprelu is better by `advantage`, and by noise of its own."""
    found = []
    for seed in range(seeds):
        of_seed = rng.gauss(0, 0.05)
        for model, more in (("topk", 0.0), ("jumprelu", advantage + rng.gauss(0, noise))):
            found += [job(model, k, seed, 0.5 + 0.1 * math.log2(k / 4) + of_seed + more) for k in (4, 8, 16, 32)]
    return found


# -- the protocol -------------------------------------------------------------------------------------------------------


def test_by_hand():
    found = compared(
        job("topk", 4, 0, 0.5), job("topk", 16, 0, 0.7), job("jumprelu", 2, 0, 0.4), job("jumprelu", 32, 0, 0.8),
        job("topk", 4, 1, 0.6), job("topk", 16, 1, 0.8), job("jumprelu", 2, 1, 0.6), job("jumprelu", 32, 1, 1.0),
    )  # fmt: skip
    ours, theirs = found.matched[1], found.matched[0]
    assert (theirs.architecture, theirs.difference, theirs.lr) == ("topk", None, 1e-3)
    assert theirs.scores == {0: pytest.approx(0.6), 1: pytest.approx(0.7)}  # halfway from 4 to 16
    assert ours.scores == {0: pytest.approx(0.6), 1: pytest.approx(0.8)}  # log(8/2) is half of log(32/2)
    # 0 and 0.1: mean 0.05, deviation 0.1/√2, over √2: 0.05; t of one degree of freedom: 12.7062
    assert ours.difference == (pytest.approx(0.05), pytest.approx(0.05), pytest.approx(0.05 - 0.63531), pytest.approx(0.05 + 0.63531), 2)
    (area,) = found.areas
    assert (area.low, area.high) == (4, 16)
    # jumprelu at 4 and 16, a quarter and three quarters on its way: 0.5 and 0.7, 0.7 and 0.9. The means 0.6 − 0.6, 0.8 − 0.7.
    assert area.differences == {0: pytest.approx(0), 1: pytest.approx(0.1)}


def test_a_planted_advantage_is_found():
    found = compared(*planted(random.Random(0), 0.02), l0=(6, 12, 24))
    for difference in (*(one.difference for one in found.matched if one.difference), found.areas[0].difference):
        assert 0 < difference.low < 0.02 < difference.high and difference.n == 5
    assert "one learning rate" in found.notes[0] and len(found.notes) == 2


def test_the_interval_of_no_difference_holds_0_as_often_as_it_says():
    rng = random.Random(0)
    areas = [compared(*planted(rng, 0.0)).areas[0].difference for _ in range(200)]
    share = statistics.fmean(area.low < 0 < area.high for area in areas)
    assert 0.90 < share < 0.996  # three standard errors of a share of 0.95 in 200


def test_what_a_curve_does_not_reach_has_no_score_and_is_said():
    found = compared(*planted(random.Random(0), 0.0, seeds=2), l0=(3, 8, 33))
    assert [len(one.scores) for one in found.matched] == [0, 0, 2, 2, 0, 0]
    assert [one.outside for one in found.matched] == [[0, 1], [0, 1], [], [], [0, 1], [0, 1]]
    assert found.matched[1].difference is None
    assert "jumprelu does not reach L0 3 (seed 0, 1), L0 33 (seed 0, 1): it has L0 4 to 32, and nothing is extrapolated" in found.notes


def test_the_learning_rate_is_that_of_the_validation_and_the_same_for_all_seeds():
    jobs = [job("jumprelu", k, seed, 0.5) for k in (4, 16) for seed in (0, 1)]
    for seed in (0, 1):
        for lr, score, val in ((1e-3, 0.9, 0.5), (2e-3, 0.7, 0.6 + 0.1 * seed), (4e-3, 0.8, 0.65 - 0.2 * seed)):
            jobs += [job("topk", k, seed, score, lr=lr, val=val) for k in (4, 16)]
    found = compared(*jobs)
    ours = found.matched[1]
    assert (ours.lr, ours.edge, ours.scores) == (2e-3, "", {0: 0.7, 1: 0.7})  # validations: 0.5, 0.65, 0.55 in the mean
    assert found.areas[0].differences == {0: pytest.approx(0.2), 1: pytest.approx(0.2)}
    assert "jumprelu has one learning rate, 0.001: it is not tuned" in found.notes
    assert not any("topk" in note for note in found.notes)


def test_a_learning_rate_at_the_edge_of_its_grid_is_said():
    jobs = [job("jumprelu", k, 0, 0.5) for k in (4, 16)]
    jobs += [job("topk", k, 0, score, lr=lr) for k in (4, 16) for lr, score in ((1e-3, 0.8), (2e-3, 0.9 - k / 50))]
    notes = compared(*jobs, l0=(4, 16)).notes
    assert "the best learning rate of topk is the highest of its grid, 0.002, at L0 4: a wider grid may do better" in notes
    assert "the best learning rate of topk is the lowest of its grid, 0.001, at L0 16: a wider grid may do better" in notes


def test_a_rate_that_lost_a_seed_stands_behind_one_that_did_not():
    jobs = [job("jumprelu", k, seed, 0.5) for k in (4, 16) for seed in (0, 1)]
    jobs += [job("topk", k, seed, 0.6) for k in (4, 16) for seed in (0, 1)]
    jobs += [job("topk", k, 0, 0.9, lr=2e-3) for k in (4, 16)] + [job("topk", k, 1, None, lr=2e-3) for k in (4, 16)]
    found = compared(*jobs)
    assert found.matched[1].lr == 1e-3
    assert found.areas[0].differences == {0: pytest.approx(0.1), 1: pytest.approx(0.1)}
    assert "2 of 8 trainings of topk do not count: topk k=4 lr 0.002 seed 1 (failed), topk k=16 lr 0.002 seed 1 (failed)" in found.notes


def test_a_worse_rate_of_slightly_less_l0_makes_no_dent_in_the_front():
    jobs = [job("jumprelu", k, 0, 0.0) for k in (4, 16)]
    for k, score in ((4, 0.5), (8, 0.7), (16, 0.9)):
        jobs += [job("topk", k, 0, score), job("topk", k, 0, score - 0.1, lr=2e-3, l0=k * 0.99)]
    area = compared(*jobs).areas[0]
    # 0.7 is the mean over log L0 of the better rate, and 0.6 that of the other one, which ends at 15.84 and begins before 4
    assert area.differences[0] == pytest.approx(0.7, abs=0.002)


def test_pairs_are_only_where_both_are_there():
    jobs = planted(random.Random(0), 0.02, seeds=4)
    lost = [one for one in jobs if (one.settings["model"], one.settings["seed"]) != ("jumprelu", 2)]
    diverged = [job("topk", k, 3, math.nan) for k in (4, 8, 16, 32)]
    found = compared(*[one for one in lost if (one.settings["model"], one.settings["seed"]) != ("topk", 3)], *diverged)
    ours = found.matched[1]
    assert (sorted(ours.scores), sorted(found.matched[0].scores), ours.difference.n) == ([0, 1, 3], [0, 1, 2], 2)
    assert (sorted(found.areas[0].differences), found.areas[0].difference.n) == ([0, 1], 2)
    assert any(
        note.startswith("4 of 16 trainings of jumprelu do not count: jumprelu target_l0=4 lr 0.001 seed 2 (missing), ")
        for note in found.notes
    )
    assert any("topk k=4 lr 0.001 seed 3 (no finite explained_variance at a positive L0)" in note for note in found.notes)


def test_a_seed_with_one_point_left_takes_nothing_from_the_others():
    jobs = [one for one in planted(random.Random(0), 0.02, seeds=3) if one.settings["seed"] < 2 or one.settings.get("model.k", 4) == 4]
    found = compared(*jobs)
    assert sorted(found.areas[0].differences) == [0, 1] and (found.areas[0].low, found.areas[0].high) == (4, 32)
    assert found.matched[0].outside == [2] and found.matched[1].difference.n == 2


def test_a_penalty_is_sorted_by_the_l0_it_leads_to():
    jobs = [job("topk", k, 0, 0.5) for k in (4, 16)]
    jobs += [job("relu", weight, 0, score, l0=l0) for weight, l0, score in ((0.1, 4.0, 0.4), (0.2, 16.0, 0.6), (0.4, 2.0, 0.2))]
    assert compared(*jobs).matched[1].scores == {0: pytest.approx(0.5)}  # halfway from 4 to 16


def test_less_may_be_better():
    jobs = [job("topk", k, 0, 0.5, kl=2.0, lr=lr, val=lr) for k in (4, 16) for lr in (0.1, 0.2)]
    jobs += [job("jumprelu", k, 0, 0.5, kl=kl) for k, kl in ((4, 2.0), (8, 1.0), (16, 1.5))]
    found = compared(*jobs, metric="kl", is_less_better=True)
    assert found.chosen_by == "val/explained_variance" and found.matched[0].lr == 0.2  # of which more is better
    assert found.matched[1].difference.mean == -1.0
    assert found.areas[0].difference.mean == pytest.approx(-0.75)  # 1.5 from 4 to 8, 1 from 8 on: −0.5 and −1 in two octaves


def test_other_settings_that_differ_are_architectures_of_their_own():
    wide = {"settings": {"dictionary.expansion_factor": 16, "model.revival.k": 4}}
    narrow = {"settings": {"dictionary.expansion_factor": 8, "model.revival.k": 4}}
    jobs = [job("topk", k, 0, 0.5, **narrow) for k in (4, 16)] + [job("topk", k, 0, 0.7, **wide) for k in (4, 16)]
    found = compared(*jobs, job("relu", 0.1, 0, 0.1, settings={"dictionary.expansion_factor": 8, "evaluate": "default"}))
    names = ["topk dictionary.expansion_factor=8", "topk dictionary.expansion_factor=16", "relu dictionary.expansion_factor=8"]
    assert found.architectures == names
    assert found.matched[1].difference.mean == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([job("topk", 4, 0, 0.5), job("topk", 8, 0, 0.5)], "only topk has a finished job"),
        ([job("topk", 4, 0, None), job("relu", 8, 0, 0.5)], "topk, the first one, has no finished job"),
        ([job("topk", 4, 0, None)], "no job of these sweeps is finished"),
        ([job("topk", 4, 0, 0.5), job("topk", 4, 0, 0.5), job("relu", 8, 0, 0.5)], "there are two of topk k=4 lr 0.001 seed 0"),
        ([job("topk", 4, 0, 0.5, lr=None), job("relu", 8, 0, 0.5)], "does not say with which learning rate and seed"),
    ],
)
def test_what_cannot_be_compared_is_refused(jobs, message):
    with pytest.raises(InputError, match=message):
        compared(*jobs)


def test_a_metric_that_is_not_there_is_refused_with_the_one_that_is():
    with pytest.raises(InputError, match="metric=kl: no finished job has such a number"):
        compared(job("topk", 4, 0, 0.5), metric="kl", is_less_better=True)
    with pytest.raises(InputError, match="say where to compare, l0="):
        compared(job("relu", 4, 0, 0.5), job("relu", 4, 0, 0.5), l0=())


# -- the command --------------------------------------------------------------------------------------------------------


def folder(at: Path, jobs: list[Result], **config) -> Path:
    """What a grid leaves, its learning rate said by the configuration alone."""
    at.mkdir()
    known = {"optimizer": {"lr": 1e-3}, "seed": 0, "hydra": {"runtime": {"choices": {"model": "topk"}}}}
    (at / "multirun.yaml").write_text(json.dumps({"optimized_metric": "val/l0", "sweep": {"direction": "minimize"}} | known | config))
    for number, one in enumerate(jobs):
        of_job = at / f"{number}-name"
        (of_job / ".hydra").mkdir(parents=True)
        words = [f"{key}={value}" for key, value in one.settings.items() if key != "optimizer.lr"]
        (of_job / ".hydra/overrides.yaml").write_text(json.dumps(words))
        validated = {name: value for name, value in one.metrics.items() if name.startswith("val/")}
        (of_job / "run.json").write_text(json.dumps({"status": one.status, "step": 1, "metrics": validated}))
        scores = {name: value for name, value in one.metrics.items() if not name.startswith("val/")}
        (of_job / "scores.json").write_text(json.dumps({"schema": SCHEMA, "scores": {"sae": scores}}))
    return at


@pytest.fixture
def folders(tmp_path) -> list[str]:
    jobs = [*planted(random.Random(0), 0.02, seeds=3), job("topk", 64, 0, None)]
    return [str(folder(tmp_path / m, [one for one in jobs if one.settings["model"] == m])) for m in ("topk", "jumprelu")]


def test_sweeps_that_are_there_are_compared(folders, tmp_path, capsys):
    assert results.read(Path(folders[0])).common == {"model": "topk", "seed": 0, "optimizer.lr": 1e-3}
    assert main([*folders, f"to={tmp_path}/out"], tmp_path) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out/matched.json").read_text())
    assert (found["metric"], found["direction"], found["baseline"]) == ("explained_variance", "maximize", "topk")
    assert [one["l0"] for one in found["matched"]] == [4, 4, 8, 8, 16, 16, 32, 32, 64, 64]  # what the knobs ask for
    assert found["areas"][0]["difference"]["low"] < 0.02 < found["areas"][0]["difference"]["high"]
    assert len(found["jobs"]) == 25
    with open(tmp_path / "out/matched.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["what"], line["architecture"]) for line in lines[-2:]] == [("matched", "jumprelu"), ("area", "jumprelu")]
    assert (lines[-2]["outside"], lines[-2]["explained_variance"], lines[-2]["difference_mean"]) == ("3", "", "")
    assert float(lines[3]["difference_mean"]) == pytest.approx(found["matched"][3]["difference"]["mean"])
    assert (tmp_path / "out/matched.png").read_bytes().startswith(b"\x89PNG")
    assert "3 of 15 trainings of topk do not count: topk k=64 lr 0.001 seed 0 (failed), topk k=64 lr 0.001 seed 1 (missing)" in said
    assert "jumprelu does not reach L0 64 (seed 0, 1, 2): it has L0 4 to 32" in said
    assert " better " in said and "Traceback" not in said


def test_one_seed_and_nothing_in_common_still_leave_files(tmp_path, capsys):
    jobs = [job("topk", 4, 0, 0.5), job("topk", 8, 0, 0.6), job("jumprelu", 16, 0, 0.5), job("jumprelu", 32, 0, 0.6)]
    assert main([str(folder(tmp_path / "a", jobs)), "l0=8", f"to={tmp_path}/out"], tmp_path) == 0
    said = capsys.readouterr().out
    assert "the fronts of jumprelu and the baseline have no range of L0 in common" in said
    assert "there is one seed: differences have no interval" in said
    assert json.loads((tmp_path / "out/matched.json").read_text())["areas"][0]["difference"] is None
    assert (tmp_path / "out/matched.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "say what to compare"),
        ("model=topk,relu", "say where to compare: l0=8,16,32"),
        ("model=topk,relu l0=x", "l0=x: give numbers"),
        ("model=topk,relu l0=0,8", "an L0 is more than 0"),
        ("model=topk,relu l0=8 l0=9", "a word is there twice"),
        ("model=topk,relu l0=8 seeds=none", "seeds=none: give a number"),
        ("model=topk,relu l0=8 seeds=2 seed=0,1", "leave one out"),
        ("model=topk,relu l0=8 lr=1 optimizer.lr=1", "are the same"),
        ("model=topk,relu l0=8 lr=x", "optimizer.lr must be a number"),
        ("model=topk,relu l0=8 metric=strange", "metric=strange: say whether more of it is better"),
        ("model=topk,relu l0=8 direction=up", "maximize or minimize"),
        ("model=topk,relu l0=8 knob.gated=1", "knob.gated=…: gated is not compared"),
        ("model=topk,relu l0=8 model.k=4", "say knob.topk="),
        ("model=topk,rleu l0=8", "did you mean relu"),
        ("model=topk l0=8", "alone has nothing to be compared with"),
        ("model=topk,relu l0=8 dta=synthetic", "did you mean data=synthetic"),
        ("model=topk,relu l0=8 hydra/sweeper=optuna", "leave this word out"),
        ("model=topk,relu l0=8.5", "model.k must be an integer"),
        ("--l0=8", "there is no flag --l0=8"),
        ("nowhere", "nowhere is not the folder of a sweep"),
        ("nowhere lr=1", "lr=… belongs to a training"),
    ],
)
def test_bad_input_is_one_line_before_any_training(words, message, capsys, monkeypatch):
    monkeypatch.setattr("sae_lightning.evaluation.matched.train", lambda *_: pytest.fail("trained"))
    assert main(words.split(), ROOT) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1 and message in said.err


def test_it_is_typed_where_train_py_is(tmp_path, capsys):
    assert main(["model=topk,relu", "l0=8"], tmp_path) == 2
    assert "there is no train.py in" in capsys.readouterr().err
    assert main(["--help"], tmp_path) == 0
    assert "The protocol:" in capsys.readouterr().out


def test_each_architecture_has_a_grid_of_its_own():
    words = "model=relu,pca l0=16,8 seeds=2 lr=1e-3,3e-3 data.d=32 sweep.name=mine"
    relu, pca = plan(read(words.split()), ROOT)
    grid = "model.sparsity=0.01,0.03162,0.1,0.3162,1"  # conf/sweep/space/relu: from 0.01 to 1
    tail = ["seed=0,1", "data.d=32"]
    assert relu.words == ["hydra/sweeper=grid", "model=relu", grid, "optimizer.lr=1e-3,3e-3", *tail, "sweep.name=mine-relu"]
    assert relu.folder == Path("multirun/mine-relu")
    # 8/1.25 and 16 · 1.25 outside; nothing of a null model has a learning rate
    assert pca.words == ["hydra/sweeper=grid", "model=pca", "model.k=6,8,16,20", *tail, "sweep.name=mine-pca"]


def test_forms_of_one_architecture_can_be_compared():
    (found,) = plan(read(["model=topk", "l0=1", "seed=3,4", "dictionary.expansion_factor=4,8"]), ROOT)
    assert found.words == ["hydra/sweeper=grid", "model=topk", "model.k=1,2", "seed=3,4", "dictionary.expansion_factor=4,8"]


def test_a_training_that_is_stopped_stops_all(tmp_path, capsys, monkeypatch):
    trained = []
    monkeypatch.setattr("sae_lightning.evaluation.matched.plan", lambda *_: [Sweep(m, [], tmp_path, False) for m in ("topk", "relu")])
    monkeypatch.setattr("sae_lightning.evaluation.matched.train", lambda sweep, _: trained.append(sweep.model) or 143)
    assert main(["model=topk,relu", "l0=8", f"to={tmp_path}"], ROOT) == 143
    assert trained == ["topk"] and "type the same command again" in capsys.readouterr().err


def test_a_sweep_with_failed_jobs_is_compared_and_told(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sae_lightning.evaluation.matched.plan", lambda *_: [Sweep("topk", [], Path(folder), False) for folder in folders])
    monkeypatch.setattr("sae_lightning.evaluation.matched.train", lambda sweep, _: 2)
    assert main(["model=topk,jumprelu", "l0=8", f"to={tmp_path}/out"], ROOT) == 1
    assert "3 of 15 trainings of topk do not count" in capsys.readouterr().out


# Slow: two commands that import torch, with six trainings in all.
@pytest.mark.slow
def test_two_architectures_are_trained_and_compared(tmp_path, capfd):
    small = f"{SMALL} evaluate=[reconstruction] nulls=false callbacks=[final_validation,trial,export]"
    words = f"model=topk,jumprelu seeds=2 lr=3e-3 l0=4 knob.topk=2,8 knob.jumprelu=4 {small}"
    assert main([*words.split(), f"paths.multirun={tmp_path}/multirun", f"to={tmp_path}/out"], ROOT) == 0
    found = json.loads((tmp_path / "out/matched.json").read_text())
    assert [(job["architecture"], job["knob"], job["seed"], job["state"]) for job in found["jobs"]] == [
        *(("topk", f"k={k}", seed, "finished") for k in (2, 8) for seed in (0, 1)),
        *(("jumprelu", "target_l0=4", seed, "finished") for seed in (0, 1)),
    ]
    topk, jumprelu = found["matched"]
    assert (topk["l0"], topk["architecture"], topk["lr"], list(topk["scores"])) == (4, "topk", 3e-3, ["0", "1"])
    for job in (job for job in found["jobs"] if job["architecture"] == "topk"):
        assert job["scored"][0] == pytest.approx(float(job["knob"][2:]), rel=0.01)
    assert jumprelu["architecture"] == "jumprelu" and len(jumprelu["scores"]) + len(jumprelu["outside"]) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["matched.csv", "matched.json", "matched.png"]
    assert "Traceback" not in "".join(capfd.readouterr())
