"""`resume=`: what is replayed, what may change, and what is refused without touching a byte."""

import json
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch

from sae_lightning.errors import InputError
from sae_lightning.run import lock
from sae_lightning.run.checkpoints import newest
from sae_lightning.run.command import read as parse
from sae_lightning.run.composer import Composer
from sae_lightning.run.resume import REPLAYED, newest_unfinished, replay
from tests.runs import QUIET, ROOT, SMALL
from tests.test_commands import files, run, trained

WORDS = f"{SMALL} callbacks.last.every_n_steps=20 {QUIET} evaluate=reconstruction nulls=false"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 40 steps; tests copy it."""
    return trained(f"{WORDS} model=lagrangian model.target_l0=4", tmp_path_factory.mktemp("example"))


@pytest.fixture
def folder(example: Path, tmp_path: Path) -> Path:
    """The same run, killed."""
    copied = tmp_path / "outputs" / example.parent.name / example.name
    shutil.copytree(example, copied)
    change_record(copied, status="running")
    return copied


def change_record(folder: Path, **values) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@cache
def composer() -> Composer:
    return Composer(ROOT / "conf", "train")


def same_composer(argv: list[str]) -> Composer:
    assert not parse(argv).flags.config_dir
    return composer()


def replayed(*words: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(Path.cwd())  # what it changes is changed back
    command = replay(parse(list(words)), composer(), same_composer)
    for folder in list(lock._held):
        lock.release(folder)
    return command.words


def test_recorded_words_come_first_then_new_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = replayed(f"resume={folder}", "trainer.max_steps=60", "logger=[csv,tensorboard]", monkeypatch=monkeypatch)
    typed = f"{WORDS} model=lagrangian model.target_l0=4".split()
    typed.remove("trainer.max_steps=40")
    assert words == [
        *typed, "trainer.max_steps=60", "logger=[csv,tensorboard]", f'resume="{folder}"', f'hydra.run.dir="{folder}"', REPLAYED,
    ]  # fmt: skip


def test_relative_paths_are_those_of_the_run(folder: Path, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replay(parse([f"resume={folder.relative_to(tmp_path)}"]), composer(), same_composer)
    assert Path.cwd() == example.parents[2]
    lock.release(folder)


def test_values_of_an_option_that_is_left_go_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_record(
        folder, words=[*WORDS.split(), "model=lagrangian", "model.target_l0=4", "logger=tensorboard", "logger.tensorboard.name=a"]
    )
    words = replayed(f"resume={folder}", "logger=none", monkeypatch=monkeypatch)
    assert "logger=none" in words
    assert not [word for word in words if word.startswith("logger.")]


def test_what_a_resume_changed_stays_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = replayed(f"resume={folder}", "trainer.max_steps=60", monkeypatch=monkeypatch)
    change_record(folder, words=[word for word in words if not word.startswith(("resume", "hydra"))])
    assert "trainer.max_steps=60" in replayed(f"resume={folder}", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match=r"trainer\.max_steps=50: the run has 60 steps"):
        replayed(f"resume={folder}", "trainer.max_steps=50", monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    "word",
    [
        "trainer.max_steps=60", "logger=none", "trainer.devices=2", "strategy=ddp", "trainer.accelerator=auto", "trainer.log_every_n_steps=5",
        "trainer.val_check_interval=40", "callbacks.last.every_n_steps=40", "evaluate=[default]", "nulls=true", "paths.stores=elsewhere", "compile=true",
        "seed=0", "data.seed=0",
    ],
)  # fmt: skip
def test_what_may_change(word: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two say what the run has anyway."""
    assert word in replayed(f"resume={folder}", word, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("seed=1", "seed was 0 and would be 1"),
        ("model.target_l0=5", "model.target_l0 was 4 and would be 5"),
        ("data.batch_size=32", "data.batch_size was 64 and would be 32"),
        ("optimizer=sgd", "optimizer._target_ was torch.optim.Adam and would be torch.optim.SGD"),
        ("optimizer.lr=0.1", "optimizer.lr was 0.001 and would be 0.1"),
        ("trainer.precision=bf16-mixed", "trainer.precision was 32-true and would be bf16-mixed"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches was 1 and would be 2"),
        ("callbacks=[default,resample]", "callbacks.resample._target_ was absent and would be"),
        ("scheduler.decay=0.1", "scheduler.decay was 0.2 and would be 0.1"),
        ("model.init_from=elsewhere", "model.init_from was null and would be elsewhere"),
        ("trainer.max_steps=20", "trainer.max_steps=20: the run has 40 steps; a resumed run may only become longer"),
        ("trainer.maxsteps=60", "did you mean trainer.max_steps=60?"),
        ("-m seed=1,2", "leave -m out"),
    ],
)
def test_what_would_be_another_run_is_refused(words: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(folder)
    with pytest.raises(InputError) as refused:
        replayed(f"resume={folder}", *words.split(), monkeypatch=monkeypatch)
    assert said in str(refused.value)
    assert files(folder) == before


def test_what_is_no_run_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not the folder of a run"):
            replayed(f"resume={path}", monkeypatch=monkeypatch)
    (folder / ".hydra" / "overrides.yaml").unlink()
    change_record(folder, words=None)
    with pytest.raises(InputError, match="the words that it was started with"):
        replayed(f"resume={folder}", monkeypatch=monkeypatch)


def test_a_finished_run_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_record(folder, status="finished")
    with pytest.raises(InputError, match=r"is finished: it has trained all of its 40 steps; to train longer, add trainer\.max_steps=…"):
        replayed(f"resume={folder}", monkeypatch=monkeypatch)


def test_a_run_at_work_is_left_alone_until_its_process_is_gone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, time; from pathlib import Path; from sae_lightning.run.lock import hold; hold(Path(sys.argv[1])); "
    script += "print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, folder], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = files(folder)
        for words in ([f"resume={folder}"], ["resume=auto", f"name={folder.parent.name}", f"paths.outputs={tmp_path}/outputs"]):
            with pytest.raises(InputError, match=r"in use by process \d+ on|1 that are not finished are at work"):
                replayed(*words, monkeypatch=monkeypatch)
        assert files(folder) == before
        process.kill()
    assert replayed(f"resume={folder}", monkeypatch=monkeypatch)


def test_auto_is_the_newest_unfinished_run_of_a_name(folder: Path, tmp_path: Path) -> None:
    outputs, name = tmp_path / "outputs", folder.parent.name
    for i, (started, status) in enumerate([("2026-01-03", "interrupted"), ("2026-01-05", "finished"), ("2026-01-04", "running")]):
        shutil.copytree(folder, folder.parent / f"run{i}")
        change_record(folder.parent / f"run{i}", started=f"{started}T10:00:00+00:00", status=status)
    change_record(folder, started="2026-01-01T10:00:00+00:00")
    assert newest_unfinished(outputs, name) == folder.parent / "run2"
    with pytest.raises(InputError, match=f"did you mean {name}?"):
        newest_unfinished(outputs, f"{name}9")
    with pytest.raises(InputError, match=f"resume=auto needs name=.*{name}"):
        newest_unfinished(outputs, None)
    for path in folder.parent.iterdir():
        change_record(path, status="finished")
    with pytest.raises(InputError, match="all 4 are finished"):
        newest_unfinished(outputs, name)


class TestNewestCheckpoint:
    def checkpoints(self, folder: Path) -> tuple[Path, Path]:
        """(of step 40, of step 20)."""
        last, previous = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt"
        checkpoint = torch.load(last, weights_only=True)
        torch.save(checkpoint | {"global_step": 20}, previous)
        return last, previous

    def test_it_is_the_one_with_more_steps(self, folder: Path) -> None:
        last, previous = self.checkpoints(folder)
        assert newest(folder) == (last, 40)
        last.rename(last.with_name("aside"))
        assert newest(folder) == (previous, 20)
        previous.rename(last)
        last.with_name("aside").rename(previous)
        assert newest(folder) == (previous, 40)

    @pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "pickle"])
    def test_one_that_cannot_be_read_is_passed_over(
        self, damage: str, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        last, previous = self.checkpoints(folder)
        content = last.read_bytes()
        with zipfile.ZipFile(last) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        middle = largest.header_offset + largest.file_size // 2 + 200
        damaged = {
            "empty": b"",
            "cut": content[:-1000],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "pickle": b"cos\nsystem\n(S'true'\ntR.",
        }
        last.write_bytes(damaged[damage])
        assert newest(folder) == (previous, 20)
        assert f"{last} cannot be read" in caplog.text
        assert "going on from previous.ckpt, step 20" in caplog.text
        previous.write_bytes(b"")
        before = files(folder)
        for refuses in (lambda: newest(folder), lambda: replayed(f"resume={folder}", monkeypatch=monkeypatch)):
            with pytest.raises(InputError, match=r"last.ckpt cannot be read .*previous.ckpt cannot be read .*no checkpoint is left"):
                refuses()
        assert files(folder) == before

    def test_a_run_without_any_begins_again(self, folder: Path) -> None:
        shutil.rmtree(folder / "checkpoints")
        assert newest(folder) is None


# Slow: two processes that import torch.
@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_command_line(folder: Path, example: Path, tmp_path: Path) -> None:
    """From step 20, with lines of later steps in the curves: it ends as the run that was not killed, and its record is untouched."""
    for name in ("last.ckpt", "best.ckpt"):
        (folder / "checkpoints" / name).unlink()
    assert (folder / "checkpoints" / "previous.ckpt").exists()
    change_record(folder, versions={"torch": "1.0"})
    record = files(folder / ".hydra")
    done = run("train.py", f"resume=auto name={folder.parent.name} paths.outputs={tmp_path}/outputs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "this run was started with torch 1.0 and goes on with 2." in done.stdout
    assert files(folder / ".hydra") == record
    for name in ("metrics.csv", "sae/sae.safetensors", "scores.json"):
        assert (folder / name).read_bytes() == (example / name).read_bytes(), name
    ended = json.loads((folder / "run.json").read_text())
    assert (ended["status"], ended["step"], [part["status"] for part in ended["before"]]) == ("finished", 40, ["running"])


# Slow: four processes that import torch.
@pytest.mark.slow
def test_a_finished_run_becomes_longer_and_stays_so(folder: Path, tmp_path: Path) -> None:
    change_record(folder, status="finished")
    record, before = files(folder / ".hydra"), files(folder)
    refused = run("train.py", f"resume={folder}", tmp_path)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert files(folder) == before
    done = run("train.py", f"resume={folder} trainer.max_steps=80", tmp_path)
    assert done.returncode == 0, done.stderr
    ended = json.loads((folder / "run.json").read_text())
    assert (ended["status"], ended["step"], ended["rows_seen"]) == ("finished", 80, 80 * 64)
    assert files(folder / ".hydra") == record
    assert "has trained all of its 80 steps" in run("train.py", f"resume={folder}", tmp_path).stderr
