"""The page of an SAE on the Hugging Face hub."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lightning.formats.base import hook_points, transformer_of
from sae_lightning.inference import InferenceSAE

UNNAMED = "unknown"
"""The hub's word for a licence that nobody named."""


def card(
    sae: InferenceSAE, repository: str, usage: Mapping[str, str], scores: Mapping[str, Mapping[str, float]], pictures: Sequence[Path], licence: str
) -> str:  # fmt: skip
    """README.md: what it is, how each library loads it, its scores beside those of null models, and plots.

    `usage`: code by library. `scores`: numbers by row, {} where there are none. `pictures`: paths within the repository.
    """
    import jinja2
    from huggingface_hub import ModelCardData

    architecture = str(sae.about.get("architecture", "sae"))
    data = ModelCardData(
        license=licence, library_name="sae_lightning", base_model=_on_the_hub(sae), tags=["sparse-autoencoder", "interpretability", architecture]
    )  # fmt: skip
    loader = jinja2.PackageLoader("sae_lightning.formats")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    body = environment.get_template("card.md").render(
        title=repository.rpartition("/")[2], repository=repository, of_what=_of_what(sae), size=_size(sae), sparsity=_sparsity(sae),
        d_in=sae.d_in, d_sae=sae.d_sae, facts=dict(_facts(sae)), usage=usage, rows=[plain(row.replace("_", " ")) for row in scores],
        scores=list(_lines(scores)), text="ce_sae" in scores.get("sae", {}), licence="None was named." if licence == UNNAMED else f"`{licence}`",
        pictures=[{"name": path.stem.replace("_", " "), "path": path.as_posix()} for path in pictures],
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def plain(text: Any) -> str:
    """A text from outside, in a cell of a table: no markup, no html, one line."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#|!~$" else " " if c.isspace() else c for c in str(text))[:300]


def _of_what(sae: InferenceSAE) -> str:
    at, name = hook_points(sae), transformer_of(sae)
    return (f" of {plain(name)}" if name else "") + (f" at {plain(at)}" if at else "")


def _size(sae: InferenceSAE) -> str:
    return f"{sae.d_sae} latents, rows of width {sae.d_in}{'' if sae.d_in == sae.d_out else f' to rows of width {sae.d_out}'}"


def _sparsity(sae: InferenceSAE) -> str:
    return f"the {sae.k} largest of a row active" if sae.k is not None else "active above a threshold of their own"


def _facts(sae: InferenceSAE) -> Iterator[tuple[str, str]]:
    about = sae.about
    transformer, data = about.get("transformer"), about.get("data")
    yield "architecture", plain(about.get("architecture", "unknown"))
    if isinstance(transformer, Mapping):
        yield (
            "transformer",
            ", ".join(f"{key} {plain(value)}" for key, value in transformer.items() if isinstance(value, str | int | float)),
        )
    for side, name in (("x", "hook points"), ("y", "predicts")):
        at = (about.get("hooks") or {}).get(side, [])
        if at and (side == "x" or at != about["hooks"]["x"]):
            yield name, plain(", ".join(map(str, at)))
    if isinstance(data, Mapping):
        yield from _read(data)
    if "rows" in about:
        yield "trained on", f"{about['rows']:,} rows in {about.get('step', 0):,} steps"


def _read(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    text = data.get("text")
    if isinstance(text, Mapping):
        yield "text", ", ".join(f"{key} {plain(value)}" for key, value in text.items() if isinstance(value, str | int | float))
    if "context_length" in data:
        yield "context length", plain(data["context_length"])


def _on_the_hub(sae: InferenceSAE) -> str | None:
    """The id of a transformer that came from the hub."""
    transformer = sae.about.get("transformer")
    return transformer_of(sae) if isinstance(transformer, Mapping) and "commit" in transformer else None


def _lines(scores: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    from sae_lightning.evaluation.units import unit
    from sae_lightning.report.table import HEADLINES, number

    for name in HEADLINES:
        if any(name in named for named in scores.values()):
            yield {"name": name, "values_": [number(named.get(name)) for named in scores.values()], "unit": unit(name) or ""}
