"""What `python -m sae_lightning.formats` does."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sae_lightning.errors import InputError, exit_status
from sae_lightning.formats import by_name, formats, read, recognised, write
from sae_lightning.formats.base import hook_points, is_relu, transformer_of
from sae_lightning.formats.card import UNNAMED
from sae_lightning.formats.density import density_of, write_density
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import exported, load_sae

IMPORTED = Path("outputs/imported")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 for bad input, which is one line on stderr."""
    arguments = _parser().parse_args(argv)
    return exit_status(lambda: arguments.do(arguments))


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(one.name for one in formats())
    parser = argparse.ArgumentParser(prog="python -m sae_lightning.formats", description=f"SAEs from and to other libraries: {names}.")
    commands = parser.add_subparsers(required=True, metavar="export | import | push")
    exporting = commands.add_parser("export", help="write an SAE in another library's format")
    exporting.add_argument("sae", metavar="SAE", help="a run, its folder `sae`, or an SAE of any known format")
    exporting.add_argument("--to", required=True, metavar="FORMAT", help=names)
    exporting.add_argument("folder", type=Path, metavar="FOLDER", help="where to")
    exporting.set_defaults(do=_export)
    importing = commands.add_parser("import", help="write another library's SAE as ours: sae.json and sae.safetensors")
    importing.add_argument("path", type=Path, metavar="PATH", help="its folder, or its file of weights")
    importing.add_argument("--from", dest="format", metavar="FORMAT", help=f"{names}; recognised, if not said")
    importing.add_argument("--out", type=Path, metavar="FOLDER", help=f"{IMPORTED}/<name of the folder>, if not said")
    importing.set_defaults(do=_import)
    pushing = commands.add_parser("push", help="put an SAE on the Hugging Face hub, with a page that says what it is")
    pushing.add_argument("sae", metavar="SAE", help="a run, its folder `sae`, or an SAE of any known format")
    pushing.add_argument("repository", metavar="OWNER/NAME", help="made where there is none")
    pushing.add_argument(
        "--also", metavar="FORMATS", help=f"other libraries' formats, comma separated: {names}; not said: saelens where it can; or none"
    )
    pushing.add_argument(
        "--licence", "--license", default=UNNAMED, metavar="NAME", help="as the hub writes it: mit, apache-2.0, cc-by-4.0, …"
    )
    pushing.add_argument("--private", action="store_true", help="a repository that others cannot see")
    pushing.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write the files into this folder, and push nothing")
    pushing.set_defaults(do=_push)
    return parser


def _push(arguments: argparse.Namespace) -> None:
    from sae_lightning.formats import hub

    also = None if arguments.also is None else [name for name in arguments.also.split(",") if name != "none"]
    if arguments.dry_run is not None:
        files = hub.assemble(arguments.sae, arguments.repository, arguments.dry_run, also, arguments.licence)
        print("\n".join([f"{arguments.dry_run}, for {arguments.repository}:", *(f"  {file}" for file in files)]))
        return
    print(hub.push(arguments.sae, arguments.repository, also, arguments.licence, arguments.private))


def _export(arguments: argparse.Namespace) -> None:
    place, folder = exported(arguments.sae), Path(arguments.folder)
    sae = load_sae(place)
    there = recognised(folder)
    if (folder / "sae.json").exists() or (there is not None and there.name != arguments.to):
        raise InputError(f"{folder} holds an SAE of {'this package' if there is None else there.name}: choose another folder")
    kind = write(sae, folder, arguments.to, density_of(place, sae))
    print(f"{arguments.to}: {sae.about.get('architecture', 'SAE')} as {kind}, {_size(sae)}\nwritten to {folder}")


def _import(arguments: argparse.Namespace) -> None:
    path = arguments.path.expanduser()
    if arguments.format is None and (path / "sae.json").is_file():
        raise InputError(f"{path} is of this package already: load_sae and sae= take it as it is")
    if not path.exists():
        raise InputError(f"there is no {path}")
    found = recognised(path) if arguments.format is None else by_name(arguments.format)
    sae = read(path, arguments.format)
    density = None if found is None else found.density(path)
    out = arguments.out or IMPORTED / (path.resolve().name if path.is_dir() else path.resolve().parent.name)
    if arguments.out is None and out.exists():
        raise InputError(f"{out} exists already: say where to with --out")
    print(_described(sae))
    if density is not None and density.shape == (sae.d_sae,):
        write_density(out, density)
    sae.save(out)
    print(f"written to {out}")


def _described(sae: InferenceSAE) -> str:
    imported, hook, transformer = sae.about["imported"], hook_points(sae), transformer_of(sae)
    parts = [f"{imported['format']}: {sae.about['architecture']}", _size(sae), _sparsity(sae)]
    parts += [f"hook point {hook}" + (f" of {transformer}" if transformer else "")] if hook else [transformer] if transformer else []
    return "\n".join([", ".join(parts), *imported.get("notes", [])])


def _size(sae: InferenceSAE) -> str:
    return f"{sae.d_in}{'' if sae.d_in == sae.d_out else f' → {sae.d_out}'} × {sae.d_sae}"


def _sparsity(sae: InferenceSAE) -> str:
    if sae.k is not None:
        return f"k {sae.k}"
    assert sae.threshold is not None
    return "every positive latent" if is_relu(sae) else f"thresholds {float(sae.threshold.min()):.3g} to {float(sae.threshold.max()):.3g}"
