"""`python -m sae_lightning.data.harvest`: makes the store that a training would make, whole or in parts, and says which parts there are."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig, OmegaConf

import sae_lightning
from sae_lightning.errors import InputError
from sae_lightning.run.entry import entry

if TYPE_CHECKING:
    from sae_lightning.data.harvest import Harvesting

COMMAND = "python -m sae_lightning.data.harvest"


def folder_of_configurations() -> Path:
    """`conf` of the checkout that the package is in; of the folder where the command is typed, where it is installed by itself."""
    checkout = Path(str(sae_lightning.__file__)).resolve().parents[1] / "conf"
    return checkout if checkout.is_dir() else Path("conf").resolve()


class Wanted(NamedTuple):
    """What a configuration asks for: the whole, a part of it, or (`part` None) what there is of its parts."""

    whole: "Harvesting"
    part: int | None
    parts: int | None

    @property
    def store(self) -> "Harvesting":
        """What is to be there in the end."""
        return self.whole if self.part is None or self.parts is None else self.whole.part(self.part, self.parts)

    def is_complete(self) -> bool:
        """Also where what is there cannot be read, which the harvest will say: False."""
        try:
            return self.whole.is_complete() or self.store.is_complete()
        except InputError:
            return False


@entry("harvest", folder_of_configurations())
def main(cfg: DictConfig) -> None:
    of = wanted(cfg)
    if of.part is None and of.parts is not None:
        if not report(of.whole, of.parts):
            raise SystemExit(1)
        return
    store = of.whole if of.whole.is_complete() else of.store
    was_complete = store.is_complete()
    rows = store.ensure().rows
    print(f"{store.path}{' is complete' if was_complete else ''}: {rows:,} rows", flush=True)


def wanted(cfg: DictConfig, known: "dict[str, Harvesting] | None" = None) -> Wanted:
    """Nothing heavy is done yet. known: the wholes of earlier calls, which are not looked at again.

    Errors: InputError for what cannot be harvested, and for a part that there is not.
    """
    from sae_lightning.data.shares import check_part

    part, parts = cfg.data.part, cfg.data.parts
    if part is not None and parts is None:
        raise InputError(f"data.part={part} of how many? add data.parts=…")
    if parts is not None:
        check_part(part, parts)
    if "_target_" not in cfg.data:
        raise InputError(f"what is to be harvested? add data=…, one of those that {COMMAND} --help lists")
    from sae_lightning.run.build import own

    data, known = own(cfg, "data"), {} if known is None else known
    words = OmegaConf.to_yaml(data, resolve=True)
    whole = known[words] = known.get(words) or _harvest(data)
    if parts is not None:
        whole.part(0 if part is None else part, parts)
    return Wanted(whole, part, parts)


def _harvest(node: DictConfig) -> "Harvesting":
    """What makes the store of a source of rows. Errors: InputError for one that has none."""
    from sae_lightning.data.datamodule import ActivationDataModule
    from sae_lightning.data.harvest import Harvesting
    from sae_lightning.data.live import LiveDataModule
    from sae_lightning.run.instantiate import instantiate

    data = instantiate(node)
    if isinstance(data, LiveDataModule):
        raise InputError("data.mode=live has no store: leave it out, and a store is harvested")
    if not (isinstance(data, ActivationDataModule) and isinstance(data.source, Harvesting)):
        raise InputError("there is nothing to harvest, these rows are there or made while an SAE is trained: choose a text, or data=images")
    return data.source


# -- what there is ------------------------------------------------------------------------------------------------------


def report(whole: "Harvesting", parts: int) -> bool:
    """Prints which parts are complete, begun and missing, and what to do about it. Whether nothing is left to harvest."""
    if whole.is_complete():
        print(f"{whole.path} is complete: {whole.ensure().rows:,} rows; its parts are not needed")
        return True
    from sae_lightning.data.shares import folder_of_parts, ranges

    complete, begun, missing, unusable = [], {}, [], {}
    for part in range(parts):
        store = whole.part(part, parts)
        try:
            manifest = store.manifest()
        except InputError as error:
            unusable[part] = f"{part} ({error})"
            continue
        if store.is_complete():
            complete.append(part)
        elif manifest is None:
            missing.append(part)
        else:
            there = sum((store.path / shard.name).exists() for shard in manifest.shards)
            begun[part] = f"{part} ({there} of {manifest.shards_expected()} shards)"
    folder, left = folder_of_parts(whole.path), sorted([*begun, *missing, *unusable])
    print(f"{folder}: {len(complete)} of {parts} parts are complete")
    for name, which, text in (
        ("complete", complete, ranges(complete)),
        ("begun", begun, ", ".join(begun.values())),
        ("missing", missing, ranges(missing)),
        ("unusable", unusable, "; ".join(unusable.values())),
    ):
        if which:
            print(f"  {name:8} {len(which):>5}  {text}")
    if left:
        print(f"harvest what is left:  {_again(left, parts)}")
    else:
        glob = f"{shlex.quote(str(folder))}/part-*-of-{parts:05d}"
        print(f"join them:  python -m sae_lightning.data.store merge {glob} --to {shlex.quote(str(whole.path))}")
    return not left


def _again(left: list[int], parts: int) -> str:
    """The command that was typed, for these parts."""
    words = [word for word in sys.argv[1:] if not word.startswith(("data.part=", "data.parts=")) and word not in ("-m", "--multirun")]
    return shlex.join([*COMMAND.split(), "-m", *words, f"data.part={','.join(map(str, left))}", f"data.parts={parts}"])
