"""Files that were made to do harm: each is refused in one line, and nothing is run, followed or allocated."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lightning.errors import InputError
from sae_lightning.load import load_sae
from tests.oracles.make_golden import GOLDEN, ROOT

LENS, SPARSIFY, DL, GEMMA = (
    GOLDEN / "foreign" / name for name in ("sae_lens/topk", "sparsify/topk", "dictionary_learning/topk", "sae_lens/gemma_scope")
)
HUGE = 1 << 40


class Code:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def config(file: str, **changes):
    def change(folder: Path) -> None:
        cfg = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(cfg | changes))

    return change


def text(file: str, content: str | bytes):
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def header(content: dict, data: bytes = b"", length: int | None = None):
    """A safetensors file with this header, which claims to be so long."""
    raw = json.dumps(content).encode()
    return text("sae_weights.safetensors", struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def pickled_code(folder: Path) -> None:
    torch.save({"encoder.weight": Code(folder / "ran")}, folder / "ae.pt")


def plain_pickle(folder: Path) -> None:
    (folder / "ae.pt").write_bytes(pickle.dumps(Code(folder / "ran")))


def legacy_pickle(folder: Path) -> None:
    torch.save({"x": Code(folder / "ran")}, folder / "ae.pt", _use_new_zipfile_serialization=False)


def expanded(folder: Path) -> None:
    """One number as 2^40 rows of it."""
    held = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(held | {"encoder.weight": torch.zeros(1, 1).expand(HUGE, 8)}, folder / "ae.pt")


def compressed(folder: Path) -> None:
    with zipfile.ZipFile(folder / "ae.pt") as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(folder / "ae.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, content)


def not_a_mapping(folder: Path) -> None:
    torch.save([1, 2], folder / "ae.pt")


def arrays(**changes):
    def change(folder: Path) -> None:
        with np.load(folder / "params.npz") as held:
            kept = dict(held)
        np.savez(folder / "params.npz", **kept | changes)

    return change


def array_header(shape: tuple[int, ...], descr: str = "<f4"):
    """params.npz whose W_enc claims this shape and holds nothing."""

    def change(folder: Path) -> None:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(folder / "params.npz") as old:
            entries = {entry.filename: old.read(entry) for entry in old.infolist()}
        with zipfile.ZipFile(folder / "params.npz", "w") as new:
            for name, content in (entries | {"W_enc.npy": file.getvalue()}).items():
                new.writestr(name, content)

    return change


def bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("W_enc.npy", bytes(50_000_000))


def weights(**changes):
    def change(folder: Path) -> None:
        held = load_file(folder / "sae_weights.safetensors")
        save_file({name: weight for name, weight in (held | changes).items() if weight is not None}, folder / "sae_weights.safetensors")

    return change


def entry(shape: list[int], *offsets: int) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


TARGET = {"_target_": "os.system", "_args_": ["touch ran"]}
HOSTILE: dict[str, tuple[Path, Callable[[Path], object], str]] = {
    "an object in a configuration": (LENS, config("cfg.json", **TARGET), r"asks for an object to be made \(_target_: 'os.system'\)"),
    "an object deep in it": (LENS, config("cfg.json", metadata={"x": [{"y": TARGET}]}), "_target_: 'os.system'"),
    "an object in sparsify's": (SPARSIFY, config("cfg.json", **TARGET), "_target_: 'os.system'"),
    "an object in dictionary_learning's": (DL, config("config.json", trainer=TARGET), "_target_: 'os.system'"),
    "a path for a hook point": (LENS, config("cfg.json", metadata={"hook_name": "../../../etc/passwd"}), "is no name of a hook point"),
    "an absolute one": (DL, config("config.json", trainer={"dict_class": "AutoEncoderTopK", "submodule_name": "/etc"}), "is no name of a hook point"),
    "a configuration that is none": (LENS, text("cfg.json", "[1]"), "holds a list and no configuration"),
    "brackets without an end": (LENS, text("cfg.json", "[" * 100_000), "cannot be read"),
    "a configuration without an end": (LENS, text("cfg.json", b" " * (1 << 24) + b"{}"), "a configuration has at most"),
    "a number of a million digits": (LENS, text("cfg.json", '{"k": ' + "9" * 1_000_000 + "}"), "cannot be read"),
    "bytes that are no text": (LENS, text("cfg.json", b"\xff\xfe{}"), "cannot be read"),
    "a header of 2^63 bytes": (LENS, header({}, length=1 << 63), "cannot be read"),
    "a header of all the file, and more": (LENS, header({}, length=1 << 20), "cannot be read"),
    "2^40 rows": (LENS, header({"W_enc": entry([HUGE, 32], 0, HUGE * 128)}), "cannot be read"),
    "2^40 rows in few bytes": (LENS, header({"W_enc": entry([HUGE, 32], 0, 4)}, bytes(4)), "cannot be read"),
    "rows that overflow": (LENS, header({"W_enc": entry([1 << 62, 1 << 62], 0, 4)}, bytes(4)), "cannot be read"),
    "2^40 empty rows": (LENS, header({name: entry([HUGE, 0], 0, 0) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}), "is no weight of an SAE"),
    "tensors that overlap": (LENS, header({"W_enc": entry([2], 0, 8), "W_dec": entry([2], 4, 12)}, bytes(12)), "cannot be read"),
    "no bytes": (LENS, text("sae_weights.safetensors", b""), "cannot be read"),
    "a weight that is not there": (LENS, weights(W_dec=None), "holds no W_dec"),
    "weights of two SAEs": (LENS, weights(b_enc=torch.zeros(31)), r"b_enc has shape \(31,\), beside the others it should be \(32,\)"),
    "a decoder of one axis": (LENS, weights(W_dec=torch.zeros(32)), "have 2 and 1 axes"),
    "whole numbers": (LENS, weights(W_dec=torch.zeros(32, 8, dtype=torch.int64)), "is no weight of an SAE"),
    "NaN": (LENS, weights(b_dec=torch.full((8,), torch.nan)), "b_dec holds NaN"),
    "a pickle with code": (DL, pickled_code, "objects, which are never run"),
    "a plain pickle with code": (DL, plain_pickle, "no archive as torch.save writes"),
    "an old one with code": (DL, legacy_pickle, "no archive as torch.save writes"),
    "one number as 2^40 rows": (DL, expanded, "claims a tensor of shape"),
    "a compressed archive": (DL, compressed, "is a compressed archive"),
    "no mapping": (DL, not_a_mapping, "no state_dict"),
    "an archive cut short": (DL, lambda folder: os.truncate(folder / "ae.pt", 2000), "no archive as torch.save writes"),
    "a pickled array": (GEMMA, arrays(W_enc=np.array([Code(Path("ran"))], dtype=object)), "pickled objects, which are never run"),
    "an array of 2^40 rows": (GEMMA, array_header((HUGE, 32)), r"claims shape \(1099511627776, 32\)"),
    "an array of less than nothing": (GEMMA, array_header((-4, 8)), "cannot be read as arrays of numbers"),
    "an array of code": (GEMMA, array_header((1,), "|O"), "pickled objects, which are never run"),
    "an array of names": (GEMMA, arrays(b_enc=np.array(["a"])), "cannot be read as arrays of numbers"),
    "an archive that unpacks to all the disk": (GEMMA, bomb, "unpacks to more than 100 times its size"),
    "no archive": (GEMMA, text("params.npz", "PK"), "cannot be read as arrays of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_it_is_refused_in_a_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, change, says = HOSTILE[case]
    shutil.copytree(of, tmp_path / "sae")
    monkeypatch.chdir(tmp_path / "sae")
    assert load_sae(tmp_path / "sae").d_sae == 32  # before the change
    change(tmp_path / "sae")
    with pytest.raises(InputError, match=says) as refused:
        load_sae(tmp_path / "sae")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not (tmp_path / "sae/ran").exists()


def test_the_code_would_have_run(tmp_path: Path) -> None:
    """Else nothing is shown above."""
    pickled_code(tmp_path)
    torch.load(tmp_path / "ae.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_paths_in_a_configuration_are_not_opened(tmp_path: Path) -> None:
    """Its own process, of which the system says each file that it opened."""
    shutil.copytree(LENS, tmp_path / "sae")
    (tmp_path / "secret").write_text("{}")
    paths = {"weights": "../secret", "sae_path": str(tmp_path / "secret"), "dataset_path": "../secret"}
    config("cfg.json", **paths)(tmp_path / "sae")
    program = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        f"from sae_lightning.load import load_sae; load_sae({str(tmp_path / 'sae')!r})\n"
        "assert any('cfg.json' in path for path in opened)\n"
        "print([path for path in opened if 'secret' in path], 'lightning' in sys.modules, 'hydra' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[] False False", done.stderr


def test_numbers_that_json_does_not_know_become_text(tmp_path: Path) -> None:
    shutil.copytree(LENS, tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae/cfg.json").read_text()) | {"lr": float("nan"), "more": ["large"]}
    (tmp_path / "sae/cfg.json").write_text(json.dumps(cfg).replace('"large"', "1e999"))
    sae = load_sae(tmp_path / "sae")
    assert (sae.about["imported"]["lr"], sae.about["imported"]["more"]) == ("nan", ["inf"])
    sae.save(tmp_path / "ours")


def test_what_our_own_description_names_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_sae(LENS).save(tmp_path, {"hook": TARGET} | TARGET)
    assert load_sae(tmp_path).about["hook"] == TARGET
    config("sae.json", **TARGET)(tmp_path)
    load_sae(tmp_path)
    assert not (tmp_path / "ran").exists()
