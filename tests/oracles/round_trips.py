"""SAEs from and to other libraries, which run here: not a test of the suite, but of `make oracles`.

Either way the library itself and we encode and decode the same rows: x̂ to 1e-5 of its length, latents where h is further than
1e-4 RMS(h) from where they become active, and in float64 all to 1e-12. With -s: the largest differences.
"""

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_lightning import formats
from tests.formats.saes import EXPORTS, assert_same, exported, in_double, outputs, rows
from tests.oracles.make_golden import ROOT

READS = {"dictionary_learning": "dictionary_learning", "gemma_scope": "sae_lens", "saelens": "sae_lens", "sparsify": "sparsify"}
"""Which library reads a format."""
EXACT = "-float64"


def ask(library: str, do: str, folder: Path) -> None:
    python = ROOT / ".peers" / library / "bin" / "python"
    assert python.exists(), f"there is no {python}: run `make peers`"
    command = [python, "-m", f"tests.oracles.foreign.with_{library}", do, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def largest(differences: dict[bool, list[dict[str, float]]]) -> str:
    found = {is_exact: {key: max(one[key] for one in ones) for key in ones[0]} for is_exact, ones in differences.items()}
    return ", ".join(
        f"{'float64' if is_exact else 'float32'} {key} {value:.1e}" for is_exact, all_ in found.items() for key, value in all_.items()
    )


@pytest.mark.parametrize("library", ["dictionary_learning", "sae_lens", "sparsify"])
def test_theirs_are_ours(library: str, tmp_path: Path) -> None:
    ask(library, "write", tmp_path)
    differences = defaultdict(list)
    for folder in sorted(tmp_path.iterdir()):
        theirs = load_file(folder / "theirs.safetensors")
        x, sae = rows(theirs["x_hat"].dtype), formats.read(folder)
        try:
            found = assert_same(outputs(sae, x), (theirs["latents"], theirs["x_hat"]), sae, x)
        except AssertionError as error:
            raise AssertionError(f"{folder.name}: {error}") from error
        differences[folder.name.endswith(EXACT)].append(found)
    assert {len(ones) for ones in differences.values()} == {len(list(tmp_path.iterdir())) / 2}
    print(f"\n{library} → ours, {len(differences[True])} cases: {largest(differences)}")


@pytest.mark.parametrize("name", READS)
def test_ours_are_theirs(name: str, tmp_path: Path) -> None:
    """What every architecture of conf/model exports, as autoencoder and transcoder, where the format can hold it."""
    written = {}
    for model, kind in EXPORTS:
        sae = exported(model, kind)
        for end, one in (("", sae), (EXACT, in_double(sae))):
            if formats.by_name(name).refusal(one) is None:
                folder = tmp_path / f"{model}-{kind.replace(', ', '-').replace(' ', '_')}{end}"
                formats.write(one, folder, name)
                written[folder] = one
    ask(READS[name], "read", tmp_path)
    differences = defaultdict(list)
    for folder, sae in written.items():
        x, theirs = rows(sae.W_enc.dtype), load_file(folder / "theirs.safetensors")
        assert theirs["x_hat"].dtype == x.dtype
        try:
            found = assert_same((theirs["latents"], theirs["x_hat"]), outputs(sae, x), sae, x)
        except AssertionError as error:
            raise AssertionError(f"{folder.name}: {error}") from error
        differences[x.dtype == torch.float64].append(found)
    print(f"\nours → {name}, {len(differences[True])} cases: {largest(differences)}")
