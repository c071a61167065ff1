"""`python -m sae_lightning.data.store`: what is in an activation store, whether it is whole, joining and cutting."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file

from sae_lightning.data.manifest import LARGE, SHARE, STATISTICS, Manifest, read_manifest
from sae_lightning.data.parts import OF_TEXT, TEXTS, described, merge, split
from sae_lightning.data.statistics import statistics_from_tensors
from sae_lightning.data.store import fault, listed
from sae_lightning.errors import InputError, exit_status

WIDTH = 160
"""Of what is printed where there is no terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 where a store is not whole; 2 for bad input, which is one line on stderr."""
    arguments = _parser().parse_args(argv)
    return exit_status(lambda: arguments.do(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sae_lightning.data.store", description="Activation stores: look, check, join, cut.")
    commands = parser.add_subparsers(required=True, metavar="info | verify | merge | split")
    info = commands.add_parser("info", help="what a store holds; reads no row")
    verify = commands.add_parser("verify", help="compare every file with its checksum; exit status 1 where one is wrong")
    for command, do in ((info, _info), (verify, _verify)):
        command.add_argument("path", type=Path, metavar="PATH")
        command.set_defaults(do=do)
    joining = commands.add_parser("merge", help="join parts of a store, or stores of different texts; shards are linked where possible")
    joining.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    joining.set_defaults(do=_merge)
    cutting = commands.add_parser("split", help="cut at shard boundaries into stores FOLDER/part-00000, …")
    cutting.add_argument("path", type=Path, metavar="PATH")
    cutting.add_argument("--parts", type=int, required=True, metavar="N")
    cutting.set_defaults(do=_split)
    for command in (joining, cutting):
        command.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    return parser


# -- info ---------------------------------------------------------------------------------------------------------------


def _info(arguments: argparse.Namespace) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    folder: Path = arguments.path
    manifest = read_manifest(folder)
    console.print(_contents(folder, manifest))
    if manifest.complete:
        try:
            console.print(_statistics(folder, manifest))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / STATISTICS} cannot be read: the command verify says more") from error


def _contents(folder: Path, manifest: Manifest) -> Table:
    counts, shards = manifest.counts, len(manifest.shards)
    shares = {SHARE: manifest.identity[SHARE]} if SHARE in manifest.identity else {}
    texts = manifest.identity.get(TEXTS) or [{key: manifest.identity[key] for key in OF_TEXT if key in manifest.identity} | shares]
    each = "positions" if manifest.is_of_images else "tokens"
    facts = {
        "store": str(folder) if manifest.complete else f"{folder}: INCOMPLETE, {shards} of {manifest.shards_expected()} shards",
        "transformer": _plain(manifest.identity.get("transformer")),
        "hook points": ", ".join(f"{hook} (d {d})" for hook, d in manifest.widths.items()),
        "images" if manifest.is_of_images else "text": "\n".join(map(_plain, texts)),
        "sequences": f"{sum(shard.sequences for shard in manifest.shards):,} of {manifest.context_length} {each}; asked for: {manifest.sequences:,}",
        "rows": f"{counts.rows:,} of {counts.tokens:,} {each}, {manifest.dtype}",
        "left out": f"{counts.special:,} special {each} (ids {', '.join(map(str, manifest.special_ids))}), "
        f"{counts.nonfinite:,} NaN or infinite, {counts.norm_above_limit:,} by norm",
        "exclusions": _plain(manifest.identity.get("exclusions")),
        "files": f"{shards} shards, {sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB",
        "schema": str(manifest.schema),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table


def _statistics(folder: Path, manifest: Manifest) -> Table:
    tensors = load_file(folder / STATISTICS)
    table = Table(title="norms of the rows that are stored", title_justify="left")
    table.add_column("hook point")
    for name in ("√E‖x‖²", "‖E x‖", "min", "median", "max", f"rows > {LARGE:g} × median"):
        table.add_column(name, justify="right")
    for hook in manifest.widths:
        statistics = statistics_from_tensors(hook, tensors)
        norms = (statistics.mean_square_norm**0.5, float(statistics.mean.norm()), statistics.min_norm, statistics.median_norm)
        large = manifest.counts.large_norms.get(hook, 0)
        table.add_row(Text(hook), *(f"{norm:.4g}" for norm in (*norms, statistics.max_norm)), f"{large:,}")
    table.caption = f"rows above {LARGE:g} × median are counted before exclusions, and left out where exclude_norm_above says so"
    table.caption_justify = "left"
    return table


def _plain(value: Any) -> str:
    """Of an identity: name and value, comma separated."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return ", ".join(f"{key} {each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)}" for key, each in value.items())


# -- verify, merge, split -----------------------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.path
    manifest = read_manifest(folder)
    files = listed(manifest)
    bar = Console(stderr=True)
    looked_at = track(files, "verify", console=bar, transient=True, disable=not bar.is_terminal)
    found = [fault(folder / name, size, sha256) for name, size, sha256 in looked_at]
    problems = [problem for problem in found if problem]
    if not manifest.complete:
        problems.append(f"{folder} is incomplete: {len(manifest.shards)} of {manifest.shards_expected()} shards were written")
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{folder}: {len(files)} files are as the manifest says")
    return 1 if problems else 0


def _merge(arguments: argparse.Namespace) -> None:
    store = merge(arguments.paths, arguments.to)
    part = f", {described(store)}" if SHARE in store.identity else ""
    print(f"{store.path}: {store.rows:,} rows, {len(store.manifest.shards)} shards{part}")
    if store.sequences < store.manifest.sequences:
        what = "images" if store.manifest.is_of_images else "text"
        print(f"the {what} ended after {store.sequences:,} of {store.manifest.sequences:,} sequences that were asked for", file=sys.stderr)


def _split(arguments: argparse.Namespace) -> None:
    for store in split(arguments.path, arguments.parts, arguments.to):
        print(f"{store.path}: {store.rows:,} rows, {len(store.manifest.shards)} shards")
