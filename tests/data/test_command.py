import re
import subprocess
import sys

import pytest

from sae_lightning.data.command import main
from sae_lightning.data.store import Store
from tests.data.tiny import HOOKS, LOUD, RandomText, TinyLlama, files, harvest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of 64 sequences, 7 with an outlier row; not to be changed."""
    settings = {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=LOUD), "exclude_norm_above": 10.0, "dtype": "int8"}
    return harvest(tmp_path_factory.mktemp("stores"), **settings).ensure()


def said(capsys) -> str:
    """Without the spaces of the layout."""
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_info_says_what_is_in_it(made, capsys):
    assert main(["info", str(made.path)]) == 0
    text = said(capsys)
    size = sum(shard.bytes for shard in made.manifest.shards) / 1e6
    for fact in (
        f"store {made.path}",
        "transformer name tiny, spoilt true, dtype float32",
        "hook points model.layers.0 (d 16), model.layers.1.mlp:in (d 16)",
        f'"rare": {LOUD}',
        "sequences 64 of 16 tokens",
        "rows 953 of 1,024 tokens, int8",
        "left out 64 special tokens (ids 0, 1), 0 NaN or infinite, 7 by norm",
        "exclusions special true, on_nonfinite refuse, norm_above 10.0",
        f"files 4 shards, {size:.1f} MB",
    ):
        assert fact in text
    for hook, large in zip(HOOKS, (7, 0), strict=True):
        found = re.search(rf"│ {hook} │ (\S+) │ (\S+) │ (\S+) │ (\S+) │ (\S+) │ (\d+) │", text)
        statistics = made.statistics(hook)
        mean = float(statistics.mean.norm())
        expected = [statistics.mean_square_norm**0.5, mean, statistics.min_norm, statistics.median_norm, statistics.max_norm, large]
        assert [float(number) for number in found.groups()] == pytest.approx(expected, rel=1e-3)


def test_info_on_a_store_that_is_not_complete(made, capsys, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    manifest = made.manifest
    (folder / "manifest.json").write_text((made.path / "manifest.json").read_text().replace('"complete": true', '"complete": false'))
    assert main(["info", str(folder)]) == 0
    assert f"INCOMPLETE, 4 of {manifest.shards_expected()} shards" in said(capsys)
    (folder / "manifest.json").write_text((made.path / "manifest.json").read_text())
    assert main(["info", str(folder)]) == 2
    assert "statistics.safetensors cannot be read: the command verify says more" in capsys.readouterr().err


def test_split_and_merge_say_what_they_made(made, capsys, tmp_path):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    assert main(["split", str(made.path), "--parts", "2", "--to", str(parts)]) == 0
    rows = [Store(parts / f"part-0000{i}").rows for i in range(2)]
    assert said(capsys) == f"{parts}/part-00000: {rows[0]} rows, 2 shards {parts}/part-00001: {rows[1]} rows, 2 shards "
    assert main(["info", str(parts / "part-00001")]) == 0
    assert 'share {"first": 32, "stop": 64, "of": 64}' in said(capsys)
    assert main(["merge", *map(str, sorted(parts.iterdir())), "--to", str(whole)]) == 0
    assert said(capsys) == f"{whole}: 953 rows, 4 shards "
    assert files(whole) == files(made.path)


def test_parts_that_are_not_the_whole_say_so(made, capsys, tmp_path):
    assert main(["split", str(made.path), "--parts", "4", "--to", str(tmp_path / "parts")]) == 0
    capsys.readouterr()
    assert main(["merge", *(str(tmp_path / "parts" / f"part-0000{i}") for i in (2, 1)), "--to", str(tmp_path / "middle")]) == 0
    assert said(capsys).endswith(" rows, 2 shards, sequences 16 to 47 of 64 ")


def test_it_is_a_command(made, tmp_path):
    words = ["merge", str(made.path), str(made.path), "--to", str(tmp_path / "no")]
    done = subprocess.run([sys.executable, "-W", "error", "-m", "sae_lightning.data.store", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
