"""Commands as a user types them, each in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.load import load_sae
from tests.callbacks.curves import curves
from tests.loggers.offline import read as offline_run
from tests.runs import ROOT, SMALL
from tests.transformers.tiny_gpt2 import SENTENCES, save_parquet, save_tiny_gpt2

LEFT = {
    ".hydra", "run.json", "training.log", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "sae/sae.json", "sae/sae.safetensors",
    "sae_best/sae.json", "scores.json", "density.png", "l0.png", "plots/log_feature_density_histogram.png",
    "plots/validation_density.png", "plots/l0_per_row.png", "plots/density_against_activation.png", "plots/decoder_encoder_cosine.png",
    "plots/latent_norms.png",
}  # fmt: skip


def run(script: str, words: str, folder: Path, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command, typed in `folder`."""
    shown = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HF_HUB_OFFLINE"))} | environment
    command = [sys.executable, str(root / script), *words.split()]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=shown, check=False)


def trained(words: str, folder: Path, **environment: str) -> Path:
    """The folder that a training left, which must have ended well."""
    done = run("train.py", words, folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return folder / next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("run "))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(f"{SMALL} model.k=4", tmp_path_factory.mktemp("example"))


# Slow: two processes that import torch.
@pytest.mark.slow
def test_a_run_leaves_what_the_readme_says(example: Path) -> None:
    assert example.parent.name == "topk-k4-F64-s0"
    assert [name for name in LEFT if not (example / name).exists()] == []
    record = json.loads((example / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["rows_seen"] == 40 * 64
    assert record["parameters"]["total"] == 2 * 64 * 16 + 64 + 16
    assert record["seed"] == 0
    assert not [name for name in files(example) if name.endswith(".tmp")]
    sae = load_sae(example / "sae")
    assert sae(torch.randn(5, 16)).shape == (5, 16)
    scores = json.loads((example / "scores.json").read_text())["scores"]
    assert set(scores) == {"sae", "pca", "random_dictionary", "identity"}
    assert scores["sae"]["explained_variance"] > 0.2


# Slow: two processes that import torch.
@pytest.mark.slow
def test_evaluating_a_run_again_gives_the_same_and_changes_only_scores(example: Path) -> None:
    before = files(example)
    done = run("evaluate.py", f"run={example}", example.parent)
    assert done.returncode == 0, done.stderr
    assert "explained_variance" in done.stdout
    after = files(example)
    changed = {name for name in after if before.get(name) != after[name]}
    assert "report.html" in changed
    assert changed <= {"report.html", "evaluate.log", "training.log", "density.png", "density.safetensors", "l0.png"}
    assert after["scores.json"] == before["scores.json"]


# Slow: three processes that import torch, two of them ranks.
@pytest.mark.slow
def test_two_ranks_leave_one_run_that_is_the_run_of_one_process(example: Path, tmp_path: Path) -> None:
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path / "home"), "WANDB_API_KEY": ""}
    two = trained(f"{SMALL} model.k=4 strategy=ddp trainer.devices=2 logger=[csv,wandb]", tmp_path, **offline)
    assert [name for name in LEFT if not (two / name).exists()] == []
    assert len(list(two.parent.iterdir())) == 1
    expected = curves(example / "metrics.csv")
    (file,) = two.glob("wandb/offline-run-*/run-*.wandb")  # of rank 0 alone
    history = [row for row in offline_run(file).history if "trainer/global_step" in row]
    logged = {(int(row["trainer/global_step"]), name): value for row in history for name, value in row.items()}
    assert (two / "metrics.csv").read_text().count("\n40,val/mse,") == 1
    assert {key for key in expected if not key[1].startswith("hardware/")} <= logged.keys()
    names = [
        "train/mse",
        "val/mse",
        "val/explained_variance",
        "train/dead",
        "gradients/norm",
        "parameters/norm",
        "details/rows",
        "loss/reconstruction",
    ]
    same = {key: value for key, value in expected.items() if key[1] in names}
    assert {name for _, name in same} == set(names)
    assert {key: logged[key] for key in same} == pytest.approx(same, rel=1e-3)
    one, other = load_sae(example / "sae"), load_sae(two / "sae")
    assert_close(dict(other.named_buffers()), dict(one.named_buffers()), rtol=1e-3, atol=1e-4)


# Slow: torch.compile builds C++ kernels.
@pytest.mark.slow
def test_compiled_training_is_the_same_training(example: Path, tmp_path: Path) -> None:
    compiled = trained(f"{SMALL} model.k=4 compile=true", tmp_path)
    assert_close(dict(load_sae(compiled / "sae").named_buffers()), dict(load_sae(example / "sae").named_buffers()), rtol=1e-3, atol=1e-4)
    plain = torch.load(example / "checkpoints/last.ckpt", weights_only=True)
    assert set(torch.load(compiled / "checkpoints/last.ckpt", weights_only=True)["state_dict"]) == set(plain["state_dict"])
    longer = run("train.py", f"resume={compiled} compile=false trainer.max_steps=60", tmp_path)
    assert longer.returncode == 0, longer.stderr
    assert json.loads((compiled / "run.json").read_text())["step"] == 60


DUMMY = '''
from collections.abc import Mapping

import torch
from torch import Tensor

from sae_lightning.inference import InferenceSAE
from sae_lightning.models.base import SAE, MakeDictionary, Step, Term


class Shifted(SAE):
    """f = relu(h − θ) with one θ for all, which starts at a quantile of h and follows the mean L0."""

    shift: Tensor

    def __init__(self, dictionary: MakeDictionary, target: float, pull: float = 0.1):
        super().__init__()
        self.dictionary, self.target, self.pull = dictionary(unit_norm=True), target, pull
        self.register_buffer("shift", torch.zeros(()))

    def step(self, x: Tensor, y: Tensor) -> Step:
        h = self.dictionary.encode(x)
        near = h.above(float(self.shift))
        f = near.with_values(near.values * (near.values > self.shift))
        y_hat = self.dictionary.decode(f, x)
        return Step(f, y_hat, {"reconstruction": Term((y - y_hat).square().sum(1).mean()), "pull": Term(f.values.sum() / len(x), self.pull)})

    @torch.no_grad()
    def calibrate_(self, x: Tensor) -> None:
        self.shift.copy_(self.dictionary.encode(x).h[:1024].quantile(1 - self.target / self.dictionary.d_sae))

    @torch.no_grad()
    def after_step_(self, sums: Mapping[str, Tensor]) -> None:
        self.shift.mul_(1 + 0.01 * (sums["fires"].sum() / sums["rows"] / self.target - 1).clamp(-1, 1))

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=self.shift.expand(self.dictionary.d_sae))
'''


# Slow: a process that imports torch.
@pytest.mark.slow
def test_an_architecture_is_one_file_and_one_yaml(tmp_path: Path) -> None:
    """Added to a copy of the project, in which nothing else is touched: its buffer, loss term and start from the data take part."""
    for name in ("sae_lightning", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "sae_lightning/models/shifted.py").write_text(DUMMY)
    (tmp_path / "conf/model/shifted.yaml").write_text(
        "_target_: sae_lightning.models.shifted.Shifted\n_partial_: true\ntarget: 4.0\npull: 0.1\n"
    )
    done = run("train.py", f"model=shifted model.pull=0.05 {SMALL}", tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("run "))
    metrics = (folder / "metrics.csv").read_text()
    assert "\n40,loss/pull," in metrics
    assert "\n40,shifted/shift," in metrics
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["sae.shift"] > 0
    assert json.loads((folder / "sae/sae.json").read_text())["about"]["architecture"] == "shifted"
    wrong = run("train.py", "model=shifted model.pul=1", tmp_path, tmp_path)
    assert (wrong.returncode, "did you mean" in wrong.stderr.lower()) == (2, True)


# Slow: the transformer is fetched, samples, and is spliced.
@pytest.mark.slow
def test_from_a_transformers_own_text_to_its_loss(tmp_path: Path) -> None:
    words = (
        "model=lagrangian data=sampled_text data.max_tokens=40_000 data.batch_size=512 trainer.max_steps=200 trainer.val_check_interval=100 "
        f"optimizer.lr=3e-3 evaluate.downstream.max_tokens=2048 data.transformer.cache={os.environ['SAE_LIGHTNING_TEST_CACHE']}"
    )
    scores = json.loads((trained(words, tmp_path) / "scores.json").read_text())["scores"]
    sae, random = scores["sae"], scores["random_dictionary"]
    assert sae["ce_clean"] < sae["ce_unigram"] - 1.5
    assert sae["ce_clean"] < sae["ce_sae"] < sae["ce_ablated"]
    assert sae["ce_recovered"] > random["ce_recovered"]
    assert sae["explained_variance"] > scores["pca"]["explained_variance"]
    assert abs(sae["l0"] / 16 - 1) < 0.1
    stores = [path for path in (tmp_path / "stores").iterdir() if path.name.startswith("glassllm-sampled_text-")]
    assert len(stores) == 1
    done = run("train.py", f"data=cached data.store={stores[0]} debug=fast", tmp_path)
    assert done.returncode == 0, done.stderr


# Slow: a process that imports transformers and datasets.
@pytest.mark.slow
def test_openwebtext_trains_from_local_folders(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path / "gpt2")
    save_parquet(tmp_path / "text/plain_text/train-00000-of-00001.parquet", text=SENTENCES * 40)
    words = (
        f"data=openwebtext data.transformer.name={tmp_path / 'gpt2'} data.transformer.hooks=[transformer.h.0] data.text.name={tmp_path / 'text'} "
        "data.context_length=16 data.batch_size=64 data.max_tokens=4096 debug=fast"
    )
    scores = json.loads((trained(words, tmp_path) / "scores.json").read_text())["scores"]
    assert scores["sae"]["l0"] > 0
    assert "ce_recovered" in scores["sae"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("model=lagrangian data=openwebtext", "gpt2"),
        ("model.k=2000", "model.k is 2000, and the dictionary has 1024 latents"),
        ("model=lagrangian model.target_l0=5000", "model.target_l0 is 5000"),
        ("model=relu model.sparsity=-1", "model.sparsity is -1"),
        ("data=cached data.store=nowhere", "nowhere"),
        ("data=sampled_text data/transformer=hf data.transformer.name=./nothing", "nothing"),
        ("data=text data.text.paths=[missing.txt] data/transformer=hf data.transformer.name=./nothing", "nothing"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true is refused"),
    ],
)
# Slow: a process that imports torch for each.
@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing(words: str, says: str, tmp_path: Path) -> None:
    done = run("train.py", words, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert list(tmp_path.iterdir()) == []
