"""evaluate.py over several runs and exported SAEs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from sae_lightning import formats
from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from tests.runs import ROOT, SMALL, compose, fit

QUIET = "callbacks=none logger=none"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two seeds, exported, not scored."""
    made = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("outputs") / f"topk-s{seed}" / "now"
        words = f"{SMALL} {QUIET} model.k=4 seed={seed} data.seed=0"
        fit(words, folder).module.export().save(folder / "sae")
        (folder / ".hydra").mkdir()
        OmegaConf.save(compose(words, folder), folder / ".hydra" / "config.yaml")
        made.append(folder)
    return made


def config(*words: str):
    from sae_lightning.run.command import validate
    from sae_lightning.run.composer import Composer

    return validate(Composer(ROOT / "conf", "evaluate"), ["report=null", *words, "evaluate=[reconstruction,stability]", "nulls=false"])


def test_each_run_has_its_scores_and_all_of_them_a_table(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    from sae_lightning.run.finish import score_all

    score_all(config(f"run=[{runs[0]},{runs[1]}]"))
    of_each = [json.loads((run / "scores.json").read_text())["scores"]["sae"] for run in runs]
    assert of_each[0]["explained_variance"] != of_each[1]["explained_variance"]
    assert 0 < of_each[0]["stability_mean_cosine"] < 1  # each with the other one
    table = capsys.readouterr().out.rpartition("2 SAEs")[2]
    assert "topk-s0" in table
    assert "topk-s1" in table


def shown(page: Path) -> dict[str, Any]:
    """What the script of a page reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_several_runs_are_compared_on_a_page(runs: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from sae_lightning.run.finish import score_all

    at = runs[0].parents[2]
    monkeypatch.chdir(at)
    page = at / "compare.html"
    words = [f"run=[{runs[0]},{runs[1]}]", "evaluate.stability=null", "resume=true"]
    score_all(config(*words))
    assert not page.exists()
    assert "compare" not in capsys.readouterr().out
    score_all(config(*words, "report={_target_: sae_lightning.report.run_page.Page, rows: 200, latents: 9}"))
    assert capsys.readouterr().out.endswith("\ncompare compare.html\n")
    found = shown(page)
    assert [sae["name"] for sae in found["saes"]] == ["topk-s0", "topk-s1"]
    assert [sae["page"] for sae in found["saes"]] == [str((run / "report.html").relative_to(at)) for run in runs]
    assert found["pairs"]["rows"] == 200
    assert str(at) not in page.read_text()


def test_the_jobs_of_a_sweep_are_compared_beside_its_report(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from sae_lightning.run.finish import report_all, score_all

    score_all(config(f"run=[{runs[0]},{runs[1]}]", "resume=true"))
    study = tmp_path / "study"
    for i, run in enumerate([*runs, *runs]):
        job = study / f"{i}-topk"
        shutil.copytree(run, job, ignore=shutil.ignore_patterns("*.html"))
        (job / ".hydra" / "overrides.yaml").write_text(f"- seed={i % 2}\n- optimizer.lr={10**-i}\n")
        values = {"val/miracle_distance": float(i), "val/dead_pct": 50.0}
        (job / "run.json").write_text(json.dumps({"status": "given up" if i == 3 else "finished", "metrics": values}))
    (study / "2-topk" / "scores.json").unlink()
    (study / "multirun.yaml").write_text(
        json.dumps({"optimized_metric": "val/miracle_distance", "sweep": {"direction": "minimize"}, "hydra": {}})
    )
    report_all(config(f"study={study}"))
    assert not (study / "compare.html").exists()
    capsys.readouterr()
    report_all(config(f"study={study}", "report={_target_: sae_lightning.report.run_page.Page, rows: 200, latents: 9}"))
    assert capsys.readouterr().out == f"page    {study}/report.html\ncompare {study}/compare.html\n"
    found = shown(study / "compare.html")
    assert [(sae["name"], sae["rank"]) for sae in found["saes"]] == [("0-topk", 0), ("1-topk", 1), ("2-topk", 2)]
    assert found["saes"][2]["scores"] == {"dead_pct": 50.0}
    assert [side["sae"] for side in found["pairs"]["saes"]] == [0, 1]  # nobody knows on which rows the third one was scored
    page = (study / "compare.html").read_text()
    assert "1 more did not come to their end" in page
    assert "Of 1 the numbers are those of the last validation" in page
    assert "val/miracle distance" in page


def test_saes_on_the_rows_of_one_run_leave_its_own_scores_alone(runs: list[Path]):
    from sae_lightning.run.finish import score_all

    run, other = runs
    score_all(config(f"run={run}"))
    before = (run / "scores.json").read_bytes()
    score_all(config(f"run={run}", f"sae=[{other}/sae,{other}]", "resume=true"))  # two names of one SAE
    (folder,) = (run / "evaluated").iterdir()
    assert folder.name.startswith("topk-s1-")
    assert json.loads((folder / "scores.json").read_text())["scores"].keys() == {"sae"}
    assert (run / "scores.json").read_bytes() == before


def test_an_sae_alone_is_scored_on_the_rows_of_its_run(runs: list[Path]):
    from sae_lightning.run.finish import score_all

    score_all(config(f"run=[{runs[0]},{runs[1]}]", "evaluate.stability=null"))
    before = [(run / "scores.json").read_bytes() for run in runs]
    for run in runs:
        (run / "scores.json").unlink()
    score_all(config(f"sae=[{runs[0]}/sae,{runs[1]}]", "evaluate.stability=null"))
    assert [(run / "scores.json").read_bytes() for run in runs] == before


def test_an_sae_of_no_run_is_scored_on_rows_that_the_command_gives(runs: list[Path], tmp_path: Path):
    from sae_lightning.run.finish import score_all

    for sae, name in zip(runs, ("one", "other"), strict=True):
        formats.write(load_sae(sae), tmp_path / name, "saelens")
    given = [word for word in SMALL.split() if word.startswith("data.")]
    score_all(
        config(
            f"sae=[{tmp_path}/one,{tmp_path}/other]", "data=synthetic", *given, f"paths.outputs={tmp_path}/out", "evaluate.stability=null"
        )
    )
    score_all(config(f"run=[{runs[0]},{runs[1]}]", "evaluate.stability=null"))
    for run, name in zip(runs, ("one", "other"), strict=True):
        (folder,) = (tmp_path / "out/evaluated").glob(f"{name}-*")
        scores = [json.loads((place / "scores.json").read_text())["scores"]["sae"] for place in (run, folder)]
        assert scores[0] == scores[1]


@pytest.mark.parametrize(("views", "hooks", "wanted"), [
    ("one", {"x": ["a"], "y": ["a"]}, {"hook": "a"}),
    ("pair", {"x": ["a"], "y": ["b"]}, {"hook": "a", "hook_out": "b"}),
    ("stack", {"x": ["a", "b"], "y": ["a", "b"]}, {"hooks": ["a", "b"]}),
])  # fmt: skip
def test_rows_that_the_command_gives_are_of_the_saes_hook_points(
    views: str, hooks: dict[str, list[str]], wanted: dict[str, Any], tmp_path: Path
):
    from sae_lightning.run.subjects import subjects

    d = 4 if views == "stack" else 2
    weights = {"W_enc": torch.ones(6, d), "W_dec": torch.ones(6, d), "b_enc": torch.zeros(6), "b_dec": torch.zeros(d)}
    InferenceSAE(weights, subtract=False, k=2, about={"views": views, "hooks": hooks}).save(tmp_path)
    (subject,) = subjects(config(f"sae={tmp_path}", "data=cached", f"data.store={tmp_path}"))
    assert subject.rows.data.views == views
    assert {key: subject.rows.data[key] for key in ("hook", "hook_out", "hooks") if subject.rows.data[key]} == wanted
    (subject,) = subjects(config(f"sae={tmp_path}", "data=cached", f"data.store={tmp_path}", "data.hook=mine"))
    assert (subject.rows.data.hook, subject.rows.data.hook_out, subject.rows.data.hooks) == ("mine", None, None)


def test_resume_leaves_scores_as_they_are(runs: list[Path], monkeypatch: pytest.MonkeyPatch):
    from sae_lightning.evaluation.reconstruction import Reconstruction
    from sae_lightning.run.finish import score_all

    score_all(config(f"run={runs[0]}"))
    before = (runs[0] / "scores.json").read_bytes()

    def refused(*_: object) -> dict[str, float]:
        raise AssertionError

    monkeypatch.setattr(Reconstruction, "__call__", refused)
    score_all(config(f"run={runs[0]}", "resume=true"))
    assert (runs[0] / "scores.json").read_bytes() == before
    with pytest.raises(AssertionError):
        score_all(config(f"run={runs[0]}", "resume=true", "evaluate.reconstruction.rows=99"))


def test_a_null_run_is_a_row(runs: list[Path]):
    from sae_lightning.run.finish import score_all

    score_all(config(f"run={runs[0]}", f"null_run={runs[1]}"))
    scores = json.loads((runs[0] / "scores.json").read_text())["scores"]
    assert scores.keys() == {"sae", "random_transformer"}
    assert scores["random_transformer"]["mse"] != scores["sae"]["mse"]


def test_what_is_not_there_is_said_before_anything_is_computed(runs: list[Path], tmp_path: Path):
    from sae_lightning.run.finish import score_all

    run, other = runs
    empty = tmp_path / "empty"
    (empty / ".hydra").mkdir(parents=True)
    (empty / ".hydra" / "config.yaml").write_text((run / ".hydra" / "config.yaml").read_text())
    (run / "scores.json").unlink(missing_ok=True)
    foreign = tmp_path / "foreign"
    formats.write(load_sae(run), foreign, "saelens")
    for words, said in [
        ([f"run=[{run},{tmp_path}]"], "is not the folder of a run"),
        ([f"run=[{run},{empty}]"], "holds no exported SAE"),
        ([f"run={run}", f"sae=[{run},{tmp_path}/none]"], "is not a folder"),
        ([f"run=[{run},{other}]", f"sae={run}"], "give one run, or leave sae out"),
        ([f"sae={foreign}"], "lies in no run, whose rows it could be scored on: add run="),
        ([f"run={run}", f"sae={foreign}", "data=synthetic"], "leave one of them out"),
        ([f"run={run}", "null_run=nowhere"], "is not the folder of a run"),
        ([f"run={run}", "evaluate.stability.others=nowhere"], "is not a folder"),
    ]:
        with pytest.raises(Exception, match=said) as caught:
            score_all(config(*words))
        assert isinstance(caught.value, InputError) or isinstance(caught.value.__cause__, InputError)
    assert not (run / "scores.json").exists()
