"""SAEs as other libraries save them, beside what the libraries make of a few rows (tests/oracles/make_golden.py)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_lightning import formats
from sae_lightning.errors import InputError
from sae_lightning.formats.folding import one_gate
from sae_lightning.load import load_sae
from tests.formats.saes import assert_same, outputs, rows
from tests.oracles.make_golden import GOLDEN

FOREIGN = GOLDEN / "foreign"
CASES = sorted(str(path.parent.relative_to(FOREIGN)) for path in FOREIGN.rglob("theirs.safetensors"))
NAMES = {"sae_lens": "saelens"}
LENS, DL = FOREIGN / "sae_lens", FOREIGN / "dictionary_learning"


@pytest.mark.parametrize("case", CASES)
def test_it_is_recognised_and_is_the_same_function(case: str) -> None:
    library = case.partition("/")[0]
    sae, theirs, x = load_sae(FOREIGN / case), load_file(FOREIGN / case / "theirs.safetensors"), rows()
    expected = "gemma_scope" if case.endswith("gemma_scope") else NAMES.get(library, library)
    assert sae.about["imported"]["format"] == expected
    assert_same(outputs(sae, x), (theirs["latents"], theirs["x_hat"]), sae, x)
    json.dumps(sae.about, allow_nan=False)


def test_these_are_all_that_libraries_save() -> None:
    assert len(CASES) == 37


def test_gates_by_hand() -> None:
    # W 2, e^r = 3 with r = ln 3, b_gate −1, b_mag 4: π = 2x − 1 > 0 and 6x + 4 > 0, so f = 6x + 4 where it is over 4 + 3·1 = 7
    made = one_gate(torch.tensor([[2.0]]), torch.tensor([3.0]).log(), torch.tensor([-1.0]), torch.tensor([4.0]))
    assert_close(made, {"W_enc": torch.tensor([[6.0]]), "b_enc": torch.tensor([4.0]), "threshold": torch.tensor([7.0])})
    assert_close(one_gate(torch.ones(1, 1), torch.zeros(1), torch.ones(1), torch.zeros(1))["threshold"], torch.zeros(1))


def test_a_threshold_that_was_never_set_is_said() -> None:
    assert "never set" in load_sae(DL / "batch_topk-unset").about["imported"]["notes"][0]
    assert "notes" not in load_sae(DL / "batch_topk").about["imported"]


def test_a_backup_of_unscaled_weights_is_scaled() -> None:
    """Biases and threshold × norm_factor 2.9; the weights of rows stay as they are."""
    held = torch.load(DL / "batch_topk-backup" / "ae.pt", weights_only=True)
    sae = load_sae(DL / "batch_topk-backup")
    assert held["norm_factor"] == 2.9
    assert_close(sae.W_enc, held["ae"]["encoder.weight"], rtol=0, atol=0)
    for ours, theirs in {"b_enc": "encoder.bias", "b_dec": "b_dec"}.items():
        assert_close(getattr(sae, ours), 2.9 * held["ae"][theirs])
    assert_close(sae.threshold, torch.full((32,), 2.9 * 0.7))


def test_a_backup_whose_rows_were_not_scaled_stays_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(DL / "topk-backup", tmp_path / "sae")
    held = torch.load(tmp_path / "sae/ae.pt", weights_only=True)
    torch.save(held | {"norm_factor": None}, tmp_path / "sae/ae.pt")
    assert_close(load_sae(tmp_path / "sae").b_enc, held["ae"]["encoder.bias"], rtol=0, atol=0)


def test_weights_in_the_middle_of_a_run_have_their_configuration_above_them(tmp_path: Path) -> None:
    shutil.copytree(DL / "topk", tmp_path / "trainer_0")
    (tmp_path / "trainer_0/checkpoints").mkdir()
    (tmp_path / "trainer_0/ae.pt").rename(tmp_path / "trainer_0/checkpoints/ae_100.pt")
    assert load_sae(tmp_path / "trainer_0/checkpoints/ae_100.pt").k == 4


@pytest.mark.parametrize("name", ["log_threshold", "threshold"])
def test_old_thresholds_are_logarithms(name: str, tmp_path: Path) -> None:
    shutil.copytree(LENS / "jumprelu", tmp_path / "sae")
    held = load_file(tmp_path / "sae/sae_weights.safetensors")
    threshold = held.pop("threshold")
    save_file(held | {name: threshold.log() if name == "log_threshold" else threshold}, tmp_path / "sae/sae_weights.safetensors")
    assert_close(load_sae(tmp_path / "sae").threshold, threshold)


def test_halves_are_widened(tmp_path: Path) -> None:
    shutil.copytree(LENS / "topk", tmp_path / "sae")
    held = load_file(tmp_path / "sae/sae_weights.safetensors")
    save_file({name: weight.bfloat16() for name, weight in held.items()}, tmp_path / "sae/sae_weights.safetensors")
    assert_close(load_sae(tmp_path / "sae").W_enc, held["W_enc"].T.bfloat16().float(), rtol=0, atol=0)


def test_a_threshold_in_double_precision_is_rounded_as_the_weights_are(tmp_path: Path) -> None:
    shutil.copytree(LENS / "checkpoint", tmp_path / "sae")
    held = load_file(tmp_path / "sae/sae_weights.safetensors")
    save_file(held | {"topk_threshold": held["topk_threshold"].double()}, tmp_path / "sae/sae_weights.safetensors")
    assert {weight.dtype for weight in load_sae(tmp_path / "sae").buffers()} == {torch.float32}


def test_the_skip_connection_is_not_transposed() -> None:
    """It is square in both: x · W_skipᵀ."""
    for folder, file in ((LENS / "jumprelu_skip_transcoder", "sae_weights"), (FOREIGN / "sparsify/transcode-skip", "sae")):
        assert_close(load_sae(folder).W_skip, load_file(folder / f"{file}.safetensors")["W_skip"], rtol=0, atol=0)


def test_a_hook_points_folder_names_it(tmp_path: Path) -> None:
    for case in ("topk", "transcode"):
        shutil.copytree(FOREIGN / "sparsify" / case, tmp_path / case / "layers.3.mlp")
    assert load_sae(tmp_path / "topk/layers.3.mlp").about["hooks"] == {"x": ["layers.3.mlp"], "y": ["layers.3.mlp"]}
    assert load_sae(tmp_path / "transcode/layers.3.mlp").about["hooks"] == {"x": ["layers.3.mlp:in"], "y": ["layers.3.mlp"]}
    with pytest.raises(InputError, match=r"holds no exported SAE: name one of the folders in it, layers\.3\.mlp$"):
        load_sae(tmp_path / "topk")


def test_the_path_of_a_module_is_preferred(tmp_path: Path) -> None:
    shutil.copytree(LENS / "topk", tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae/cfg.json").read_text())
    for path, hook in {"model.layers.3.output": "model.layers.3", "model.layers.3.mlp.input": "model.layers.3.mlp:in"}.items():
        cfg["metadata"]["hf_hook_name"] = path
        (tmp_path / "sae/cfg.json").write_text(json.dumps(cfg))
        assert load_sae(tmp_path / "sae").about["hook"] == hook


def test_a_training_that_says_its_factor_is_folded_and_others_are_refused(tmp_path: Path) -> None:
    shutil.copytree(LENS / "checkpoint", tmp_path / "sae")
    (tmp_path / "sae/activation_scaler.json").unlink()
    with pytest.raises(InputError, match="expects rows times a number that is not in the folder: call fold_activation_norm_scaling_factor"):
        formats.read(tmp_path / "sae")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalize_activations": "layer_norm"}, "normalises rows by 'layer_norm': only 'none' can be read"),
        ({"normalize_activations": "covariance_whitening"}, "normalises rows by 'covariance_whitening'"),
        ({"architecture": "temporal"}, "is of architecture 'temporal': standard, gated"),
        ({"architecture": "gated"}, "holds no b_gate, b_mag, r_mag"),
        ({"architecture": ["topk"]}, "is of architecture"),
        ({"k": 33}, "has k 33 and 32 latents"),
        ({"k": True}, "has k True"),
        ({"k": None}, "has k None"),
        ({"d_sae": 1 << 40}, "says d_sae 1099511627776, the weights have 32"),
        ({"d_in": 9}, "says d_in 9, the weights have 8"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(changes: dict, says: str, tmp_path: Path) -> None:
    shutil.copytree(LENS / "topk", tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae/cfg.json").read_text())
    (tmp_path / "sae/cfg.json").write_text(json.dumps(cfg | changes))
    with pytest.raises(InputError) as refused:
        load_sae(tmp_path / "sae")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"activation": "groupmax"}, "activation 'groupmax'"),
        ({"signed": True}, "signed top-k"),
        ({"k": 0}, "has k 0"),
        ({"num_latents": 5}, "num_latents"),
    ],
)
def test_other_ways_to_choose_are_refused(changes: dict, says: str, tmp_path: Path) -> None:
    shutil.copytree(FOREIGN / "sparsify/topk", tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae/cfg.json").read_text())
    (tmp_path / "sae/cfg.json").write_text(json.dumps(cfg | changes))
    with pytest.raises(InputError, match="says d_sae 5" if "num_latents" in changes else says):
        load_sae(tmp_path / "sae")


def test_equal_weights_are_not_guessed_apart(tmp_path: Path) -> None:
    shutil.copytree(DL / "batch_topk", tmp_path / "sae")
    (tmp_path / "sae/config.json").unlink()
    with pytest.raises(
        InputError, match=r"has no config\.json beside it: trainer\.dict_class there must say whether it is AutoEncoderTopK or"
    ):
        load_sae(tmp_path / "sae")
