"""evaluate.py over several runs and exported SAEs."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_lightning.errors import InputError
from tests.runs import ROOT, SMALL, compose, fit

QUIET = "callbacks=none logger=none"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two seeds, exported, not scored."""
    made = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("outputs") / f"topk-s{seed}" / "now"
        words = f"{SMALL} {QUIET} model.k=4 seed={seed}"
        fit(words, folder).module.export().save(folder / "sae")
        (folder / ".hydra").mkdir()
        OmegaConf.save(compose(words, folder), folder / ".hydra" / "config.yaml")
        made.append(folder)
    return made


def config(*words: str):
    from sae_lightning.run.command import validate
    from sae_lightning.run.composer import Composer

    return validate(Composer(ROOT / "conf", "evaluate"), [*words, "evaluate=[reconstruction,stability]", "nulls=false", "report=null"])


def test_each_run_has_its_scores_and_all_of_them_a_table(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    from sae_lightning.run.finish import score_all

    score_all(config(f"run=[{runs[0]},{runs[1]}]"))
    of_each = [json.loads((run / "scores.json").read_text())["scores"]["sae"] for run in runs]
    assert of_each[0]["explained_variance"] != of_each[1]["explained_variance"]
    assert 0 < of_each[0]["stability_mean_cosine"] < 1  # each with the other one
    table = capsys.readouterr().out.rpartition("2 SAEs")[2]
    assert "topk-s0" in table
    assert "topk-s1" in table


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
    for words, said in [
        ([f"run=[{run},{tmp_path}]"], "is not the folder of a run"),
        ([f"run=[{run},{empty}]"], "holds no exported SAE"),
        ([f"run={run}", f"sae=[{run},{tmp_path}/none]"], "is not a folder"),
        ([f"run=[{run},{other}]", f"sae={run}"], "give one run, or leave sae out"),
        ([f"run={run}", "null_run=nowhere"], "is not the folder of a run"),
        ([f"run={run}", "evaluate.stability.others=nowhere"], "is not a folder"),
    ]:
        with pytest.raises(Exception, match=said) as caught:
            score_all(config(*words))
        assert isinstance(caught.value, InputError) or isinstance(caught.value.__cause__, InputError)
    assert not (run / "scores.json").exists()
