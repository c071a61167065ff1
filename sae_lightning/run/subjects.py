"""What evaluate.py scores: exported SAEs, on whose rows, and where the scores go."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.load import exported, load_sae
from sae_lightning.run.folder import EVALUATED, recorded_config, run_of


class Subject(NamedTuple):
    """An exported SAE, the run whose rows it is scored on, and the folder that scores and plots go to.

    `run`: None where the rows are those of the command itself. `rows`: the configuration that they are made by.
    """

    sae: Path
    run: Path | None
    folder: Path
    rows: DictConfig


def subjects(cfg: DictConfig) -> list[Subject]:
    """The SAE of each of `cfg.run`, or each of `cfg.sae`: on the rows of the one run, of the run that it lies in, or of `cfg.data`.

    Scores of an SAE on the rows of another run lie in <run>/evaluated/<its name and a hash>, on the command's in <outputs>/evaluated/….
    Errors: InputError for a folder that is no run, one without an SAE, and an SAE without rows.
    """
    runs, saes = [Path(path) for path in _listed(cfg.run)], [Path(path) for path in _listed(cfg.sae)]
    data = cfg.get("data")
    if saes and len(runs) > 1:
        raise InputError(f"sae names exported SAEs for the rows of one run, and run names {len(runs)}: give one run, or leave sae out")
    if runs and data is not None:
        raise InputError("data= gives the rows of SAEs without a run, and run= those of the run: leave one of them out")
    if not saes:
        made = [of_run(run) for run in runs]
    elif runs:
        rows = recorded_config(runs[0])
        made = [Subject(path, runs[0], _folder(runs[0], path), rows) for path in saes]
    else:
        made = [_of_sae(cfg, path) for path in saes]
    return list({one.folder.resolve(): one for one in made}.values())


def of_run(run: Path) -> Subject:
    """The SAE that a run exported, on its own rows. Errors: InputError for a folder that is no run, and one without an SAE."""
    rows = recorded_config(run)
    exported(run)
    return Subject(run / "sae", run, run, rows)


def names(chosen: Sequence[Subject]) -> list[str]:
    """Of runs the name without the time, where that is another one for each."""
    paths = [one.folder.resolve() for one in chosen]
    of_runs = [path.parent.name if one.folder == one.run else path.name for one, path in zip(chosen, paths, strict=True)]
    return of_runs if len(set(of_runs)) == len(of_runs) else [f"{path.parent.name}/{path.name}" for path in paths]


def _of_sae(cfg: DictConfig, path: Path) -> Subject:
    data, run = cfg.get("data"), run_of(path)
    if data is not None:
        return Subject(path, None, Path(cfg.paths.outputs) / EVALUATED / _name(path), _rows(cfg, path))
    if run is None:
        exported(path)
        raise InputError(
            f"{path} lies in no run, whose rows it could be scored on: add run=<a run on the same activations>, or data=… "
            "(data=sampled_text, data=cached data.store=…)"
        )
    return Subject(path, run, _folder(run, path), recorded_config(run))


def _rows(cfg: DictConfig, sae: Path) -> DictConfig:
    """The command's data, at the SAE's hook points where the command names none."""
    about = load_sae(sae).about
    views = about.get("views", "one")
    rows = OmegaConf.create(
        {"data": cfg.data, "paths": cfg.paths, "seed": cfg.seed, "dictionary": {"views": views}, "repeat_batches": None}
    )
    hooks = about.get("hooks")
    if isinstance(hooks, Mapping) and "hook" in rows.data and not any(rows.data.get(key) for key in ("hook", "hooks", "hook_out")):
        x, y = ([str(hook) for hook in hooks.get(side, [])] for side in ("x", "y"))
        rows.data.update(_at(views, x, y))
    return rows


def _at(views: str, x: Sequence[str], y: Sequence[str]) -> dict[str, Any]:
    if views == "stack":
        return {"hooks": list(x)}
    return {"hook": next(iter(x), None)} | ({"hook_out": next(iter(y), None)} if views == "pair" else {})


def _folder(run: Path, sae: Path) -> Path:
    return run if exported(sae).resolve() == (run / "sae").resolve() else run / EVALUATED / _name(sae)


def _name(sae: Path) -> str:
    path = exported(sae).resolve()
    name = path.parent.parent.name if path.name == "sae" else path.name if path.is_dir() else path.parent.name
    return f"{name}-{hashlib.blake2b(str(path).encode(), digest_size=3).hexdigest()}"


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
