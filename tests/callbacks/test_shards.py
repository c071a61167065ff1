"""A run whose latents are divided among processes is the run of one: curves, pictures, checkpoints, exports; and it goes on as any other."""

import csv
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.load import load_sae
from sae_lightning.models.topk import TopK
from sae_lightning.run.build import build
from tests.forks import forks, start
from tests.runs import SMALL, compose, fit

WORDS = (
    f"model=lagrangian model.target_l0=4 model/revival=auxk {SMALL} dictionary.expansion_factor=null dictionary.d_sae=50 "
    "dictionary.dead_after=64 data.rows_held_out=128 trainer.max_steps=20 trainer.val_check_interval=10 trainer.log_every_n_steps=5 "
    "callbacks.progress_bar=null callbacks.log_time=null callbacks.log_hardware=null callbacks.last.every_n_steps=10 "
    "callbacks.feature_density.feature_sampling_window=15"
)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-6}


def curves(path: Path) -> dict[tuple[int, str], float]:
    with path.open() as file:
        return {(int(step), name): float(value) for step, name, value in list(csv.reader(file))[1:]}


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def one_of(process: int, processes: int, port: int, folder: Path, begun: Path | None) -> None:
    """In a child, started as Lightning starts one."""
    os.environ.update(LOCAL_RANK=str(process), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    fit(f"{WORDS} strategy=shard_latents trainer.devices={processes}", folder, begun)


def train(folder: Path, processes: int, begun: Path | None = None) -> None:
    if processes == 1:
        fit(WORDS, folder, begun)
        return
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = [start(one_of, process, processes, port, folder, begun) for process in range(processes)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * processes


@forks
@pytest.mark.usefixtures("unchecked")
@pytest.mark.slow  # processes are forked twice, and wait for each other on every step
def test_parts_train_as_one_process_and_go_on_in_any_number(tmp_path: Path) -> None:
    train(tmp_path / "one", 1)
    train(tmp_path / "two", 2)
    begun = tmp_path / "two" / "checkpoints" / "previous.ckpt"
    assert checkpoint(tmp_path / "two", "previous")["global_step"] == 10
    train(tmp_path / "one, begun by two", 1, begun)
    train(tmp_path / "four, begun by two", 4, begun)

    one, logged = checkpoint(tmp_path / "one"), curves(tmp_path / "one" / "metrics.csv")
    assert one["state_dict"]["sae.dictionary.W_enc"].shape == (50, 16)
    assert {"gradients/W_enc_norm_clipped", "lagrangian/kernel_occupancy", "sparsity/below_1e-5", "train/dead", "val/rows"} <= {
        name for _, name in logged
    }
    assert max(value for (_, name), value in logged.items() if name == "train/dead") > 0
    assert logged[20, "gradients/norm_clipped"] == pytest.approx(1.0, abs=1e-4) or logged[20, "gradients/norm"] < 1
    for name in ("two", "one, begun by two", "four, begun by two"):
        found = checkpoint(tmp_path / name)
        for what in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
            assert_close(numbers(found.get(what)), numbers(one.get(what)), **CLOSE)
        other = curves(tmp_path / name / "metrics.csv")
        expected = {key: value for key, value in logged.items() if name == "two" or key[0] > 10}
        assert other == {key: pytest.approx(value, rel=1e-3, abs=1e-6, nan_ok=True) for key, value in expected.items()}
        pair = [load_sae(tmp_path / each / "sae") for each in ("one", name)]
        assert_close(dict(pair[1].named_buffers()), dict(pair[0].named_buffers()), **CLOSE)
    assert sorted(path.name for path in (tmp_path / "two").rglob("*.png")) == sorted(
        path.name for path in (tmp_path / "one").rglob("*.png")
    )


def numbers(node: Any) -> Any:
    """Its tensors and floats, in the order of their names."""
    if isinstance(node, dict):
        return [numbers(node[key]) for key in sorted(node, key=str)]
    if isinstance(node, list | tuple):
        return [numbers(each) for each in node]
    if isinstance(node, torch.Tensor):
        return node.double()
    return torch.tensor(float(node) if isinstance(node, int | float) and math.isfinite(node) else 0.0, dtype=torch.float64)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("callbacks=[default,resample]", "callbacks.resample needs a whole dictionary in each process"),
        ("model.init_from={folder}/sae", "model.init_from needs a whole dictionary in each process"),
    ],
)
def test_what_needs_a_whole_dictionary_is_refused_before_training(word: str, expected: str, tmp_path: Path) -> None:
    words = f"model=topk model.k=4 {SMALL} strategy=shard_latents trainer.devices=2"
    build(compose(f"model=topk model.k=4 {SMALL}", tmp_path)).module.sae.to_inference().save(tmp_path / "sae", {})
    with pytest.raises(InputError, match=expected):
        build(compose(f"{words} {word.format(folder=tmp_path)}", tmp_path))


def test_an_architecture_that_does_not_say_that_it_can_be_divided_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TopK, "is_divisible", False)
    with pytest.raises(InputError, match=r"topk sums over its latents in ways that .* leave strategy=shard_latents out"):
        build(compose(f"model=topk model.k=4 {SMALL} strategy=shard_latents trainer.devices=2", tmp_path))
