"""The harvest as a command of its own."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import sae_lightning.run.build
import sae_lightning.sweeps.parts  # noqa: F401 (once, for all children)
from sae_lightning.data.command import main as of_stores
from sae_lightning.errors import InputError
from sae_lightning.run.build import build_data
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer
from sae_lightning.run.harvest import main, wanted
from sae_lightning.sweeps.processes import command
from tests.data.tiny import files
from tests.forks import forks, start
from tests.run.conftest import ROOT
from tests.transformers.tiny_gpt2 import SENTENCES, save_tiny_gpt2

COMPOSERS = {name: Composer(ROOT / "conf", name) for name in ("harvest", "train")}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """6 shards of 8 sequences, with the words that a training has."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_gpt2(folder / "gpt2")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES * 12))
    return (
        f"data=text data.text.paths=[{folder}/text.jsonl] data/transformer=hf data.transformer.name={folder}/gpt2 data.context_length=16 "
        "data.transformer.hooks=[transformer.h.0] data.max_tokens=768 data.shard_rows=128 data.forward_batch_size=8 data.batch_size=64"
    )


def typed(words: str, folder: Path) -> tuple[int, str, str]:
    """What `python -m sae_lightning.data.harvest <words>`, typed in `folder`, exits with and prints."""
    for name in ("out", "err"):
        (folder / name).unlink(missing_ok=True)
    child = start(_module, words, folder)
    child.join()
    return child.exitcode, (folder / "out").read_text(), (folder / "err").read_text()


def _module(words: str, folder: Path) -> None:
    os.chdir(folder)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))  # noqa: SIM115 (to the end)
    sys.argv = ["harvest.py", *words.split()]
    warnings.simplefilter("ignore", RuntimeWarning)  # that the module was imported before
    runpy.run_module("sae_lightning.data.harvest", run_name="__main__", alter_sys=True)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"out", "err"}


@forks
def test_a_store_is_harvested_once_and_a_training_finds_it(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    code, out, err = typed(words, tmp_path)
    assert (code, err) == (0, "")
    assert left(tmp_path) == {"stores"}
    (store,) = (tmp_path / "stores").iterdir()
    assert out.splitlines()[-1] == f"stores/{store.name}: 683 rows"  # of 768 tokens the others are EOS
    before = files(store)
    monkeypatch.chdir(tmp_path)
    for more in ("", " data.part=1 data.parts=3"):
        assert said(words + more, capsys) == (0, f"stores/{store.name} is complete: 683 rows\n")
    assert said(f"{words} data.parts=3", capsys) == (0, f"stores/{store.name} is complete: 683 rows; its parts are not needed\n")
    assert files(store) == before
    assert build_data(validate(COMPOSERS["train"], words.split())).source.is_complete()


@forks
def test_parts_from_the_first_to_the_whole(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["harvest.py", *words.split(), "data.parts=4"])
    whole = wanted(validate(COMPOSERS["harvest"], [*words.split(), "paths.stores=one"])).whole.ensure().path
    parts = Path("stores") / f"{whole.name}.parts"
    assert said(f"{words} data.part=2 data.parts=4", capsys) == (0, f"{parts}/part-00002-of-00004: 113 rows\n")
    code, out = said(f"{words} data.parts=4", capsys)
    assert code == 1
    assert out.splitlines()[:3] == [f"{parts}: 1 of 4 parts are complete", "  complete     1  2", "  missing      3  0-1, 3"]
    assert (
        out.splitlines()[3]
        == f"harvest what is left:  python -m sae_lightning.data.harvest -m {_shown(words)} data.part=0,1,3 data.parts=4"
    )
    (parts / "part-00001-of-00004").mkdir()
    (parts / "part-00001-of-00004" / "manifest.json").write_text("{")
    code, out, err = typed(f"-m {words} data.part=range(0,4) data.parts=4", tmp_path)  # one that fails fails no other
    assert (code, err) == (2, "error: 1 of 4 failed: part 1; mend what is wrong and type the same command again\n")
    assert "3 of 4 are left" in out and "part 1 failed: InputError: " in out
    code, out = said(f"{words} data.parts=4", capsys)
    assert code == 1
    assert "  complete     3  0, 2-3\n" in out and "  unusable     1  1 (" in out
    shutil.rmtree(parts / "part-00001-of-00004")
    (parts / "part-00000-of-00004" / "shard-00001.safetensors").unlink()
    code, out = said(f"{words} data.parts=4", capsys)
    assert "  begun        1  0 (1 of 2 shards)\n" in out and "  missing      1  1\n" in out
    code, out, err = typed(f"-m {words} data.part=range(0,4) data.parts=4", tmp_path)
    assert (code, err) == (0, "")
    join = f"join them:  python -m sae_lightning.data.store merge {parts}/part-*-of-00004 --to stores/{whole.name}"
    assert out.splitlines()[-1] == join
    assert said(f"{words} data.parts=4", capsys) == (0, f"{parts}: 4 of 4 parts are complete\n  complete     4  0-3\n{join}\n")
    assert left(tmp_path) == {"stores", "one"}  # neither outputs nor multirun
    assert of_stores(["merge", *map(str, sorted(parts.glob("part-*-of-00004"))), "--to", f"stores/{whole.name}"]) == 0
    assert files(Path("stores") / whole.name) == files(whole)


def said(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and what is printed, in this process."""
    cfg = validate(COMPOSERS["harvest"], words.split())
    capsys.readouterr()
    try:
        main(cfg)
    except SystemExit as end:
        return int(str(end.code)), capsys.readouterr().out
    return 0, capsys.readouterr().out


def _shown(words: str) -> str:
    """As a shell wants them."""
    return " ".join(f"'{word}'" if "[" in word else word for word in words.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("data=synthetic", "there is nothing to harvest"),
        ("data=cached data.store=STORE", "there is nothing to harvest"),
        ("data=sampled_text data.mode=live", "data.mode=live has no store"),
        ("data=sampled_text data.part=3", "data.part=3 of how many"),
        ("data=sampled_text data.part=4 data.parts=4", "give 0 to 3"),
        ("data=sampled_text data.parts=-1", "data.parts is -1"),
        ("data=sampled_text data.parts=1.5", "data.parts must be an integer or null"),
        ("WORDS data.part=0 data.parts=7", "data.parts=7 is more than the 6 shards"),
        ("WORDS data.parts=7", "data.parts=7 is more than the 6 shards"),
        ("data.part=0 data.parts=1", "what is to be harvested"),
        ("", "what is to be harvested"),
        ("data.max_tokens=5", "max_tokens"),
        ("model=topk", "Could not override 'model'"),
    ],
)
def test_what_cannot_be_harvested_is_refused(more: str, said: str, words: str, tmp_path: Path):
    from tests.data.tiny import harvest

    if "STORE" in more:
        more = more.replace("STORE", str(harvest(tmp_path / "there").ensure().path))
    with pytest.raises(InputError, match=said) as error:
        main(validate(COMPOSERS["harvest"], [*more.replace("WORDS", words).split(), f"paths.stores={tmp_path}/stores"]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize("more", ["data.part=3", "data.parts=3", "+data.part=3", "+data.parts=3"])
def test_a_training_has_no_parts(more: str):
    with pytest.raises(InputError, match=r"data\.harvest makes stores in parts, .* leave out data\.part and data\.parts"):
        build_data(validate(COMPOSERS["train"], ["data=sampled_text", more]))


@forks
def test_a_refusal_is_one_line_and_leaves_nothing(tmp_path: Path):
    for more, line in (
        ("data.part=range(3,5) data.parts=4", "data.part=4 is none of data.parts=4: give 0 to 3"),
        ("data.parts=4", "which of the parts? add 'data.part=range(0,4)', or leave out -m to see what there is of them"),
    ):
        assert typed(f"-m data=sampled_text {more}", tmp_path) == (2, "", f"error: {line}\n")
        assert left(tmp_path) == set()


def test_every_launcher_accepts_a_range_of_parts(words: str):
    for launcher in ("processes", "submitit_slurm"):
        typed = [*words.split(), "data.part=range(0,64)", "data.parts=64", f"hydra/launcher={launcher}"]
        assert validate(COMPOSERS["harvest"], typed, multirun=True).data.part == 0


def test_a_sweeper_of_trainings_is_refused(words: str):
    with pytest.raises(InputError, match=r"hydra/sweeper=grid is of train\.py: leave it out"):
        validate(COMPOSERS["harvest"], [*words.split(), "data.part=0,1", "data.parts=2", "hydra/sweeper=grid"], multirun=True)


def test_the_dictionary_says_how_many_hook_points_there_are(words: str):
    own = [word for word in words.split() if not word.startswith("data.transformer.hooks")] + ["dictionary=transcoder"]
    hooks = wanted(validate(COMPOSERS["harvest"], own)).whole.hooks
    assert len(hooks) == 2
    assert build_data(validate(COMPOSERS["train"], own)).source.hooks == hooks


def test_a_job_of_a_process_is_the_same_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    from omegaconf import OmegaConf

    spec = importlib.util.find_spec("sae_lightning.data.harvest")
    assert spec is not None and spec.origin is not None
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", [spec.origin])
    config = OmegaConf.create({"hydra": {"overrides": {"hydra": []}}})
    made = command(config, ["data=images", "data.part=1"], tmp_path, ["-m", "data=images", "data.part=0,1"])
    assert made[:5] == [sys.executable, "-m", "sae_lightning.data.harvest", "data=images", "data.part=1"]


# Slow: the command and its job are Pythons of their own.
@pytest.mark.slow
def test_submitit(words: str, tmp_path: Path):
    wanted(
        validate(COMPOSERS["harvest"], [*words.split(), f"paths.stores={tmp_path}/stores", "data.part=0", "data.parts=2"])
    ).store.ensure()
    typed = [*words.split(), "-m", "data.part=range(0,2)", "data.parts=2", "hydra/launcher=submitit_local"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "sae_lightning.data.harvest", *typed]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 2 are left\n" in done.stdout
    assert ": 2 of 2 parts are complete\n" in done.stdout
    (parts,) = (tmp_path / "stores").iterdir()
    whole = tmp_path / "whole"
    assert of_stores(["merge", *map(str, parts.glob("part-*")), "--to", str(whole)]) == 0
    one = wanted(validate(COMPOSERS["harvest"], [*words.split(), f"paths.stores={tmp_path}/one"])).whole.ensure()
    assert files(whole) == files(one.path)
