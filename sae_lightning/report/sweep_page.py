"""The page of a sweep: one html file with its pictures inside, and the same pictures as PNG files."""

import base64
import html
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae_lightning.files import write_text
from sae_lightning.report.plots import write as write_figure
from sae_lightning.report.sweep import figures
from sae_lightning.report.table import number
from sae_lightning.sweeps import results as of_sweep
from sae_lightning.sweeps.results import Result, Results

COLUMNS = {"val/l0": "L0", "val/explained_variance": "explained variance", "val/dead_pct": "dead %", "kl": "KL", "delta_ce": "delta CE"}
WIDE = ("slices", "parallel")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px } th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd }
th { cursor: pointer; background: #f4f4f4 } td:first-child, th:first-child { text-align: left } tr.best { background: #fff3d6 }
tr.ended td { color: #888 } figure { display: inline-block; margin: 1em 1em 0 0; width: 47% } figure.wide { width: 100% } figure img { max-width: 100% }
pre { background: #f4f4f4; padding: .8em }
"""
SORT = """
document.querySelectorAll("table.jobs").forEach(t => t.querySelectorAll("th").forEach((h, i) => h.onclick = () => {
  const up = h.dataset.up = h.dataset.up === "1" ? "0" : "1", rows = [...t.tBodies[0].rows];
  const key = r => { const s = r.cells[i].innerText, x = parseFloat(s); return isNaN(x) ? s : x; };
  rows.sort((a, b) => (key(a) > key(b) ? 1 : key(a) < key(b) ? -1 : 0) * (up === "1" ? 1 : -1)).forEach(r => t.tBodies[0].append(r));
}));
"""


def report(folder: Path) -> Path:
    """Writes results.csv, plots/*.png and report.html into the folder of a sweep. Returns the page. Errors: InputError where it is none."""
    results = of_sweep.read(folder)
    of_sweep.write(results)
    pictures = []
    for name, about, figure in figures(results):
        path = folder / "plots" / f"{name}.png"
        write_figure(figure, path)
        pictures.append((about, path))
    page = folder / "report.html"
    write_text(page, "\n".join(_page(results, pictures)) + "\n")
    return page


def _page(results: Results, pictures: Sequence[tuple[str, Path]]) -> Iterator[str]:
    title = html.escape(results.folder.name)
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>'
    count = {status: sum(job.status == status for job in results.jobs) for status in dict.fromkeys(job.status for job in results.jobs)}
    yield f"<h1>{title}</h1><p>{len(results.jobs)} jobs: {', '.join(f'{n} {status}' for status, n in count.items())}; "
    yield f"{sum(job.seconds for job in results.jobs) / 60:.1f} minutes of training.</p>"
    best = results.best
    if best is not None:
        settings = " ".join(f"{key}={value}" for key, value in best.settings.items())
        values = ", ".join(f"{metric} {number(best.metrics.get(metric))}" for metric in results.objectives)
        yield f"<p>Best of {html.escape(next(iter(results.objectives)))}: job {best.number}, {html.escape(values)}.</p>"
        yield f"<pre>{html.escape(settings)}</pre>"
    if results.one_at_a_time:
        yield "<h2>Against the baseline</h2>"
        yield from _table(["", *_metrics(results)], _deltas(results))
    if spread := list(_spread(results)):
        yield "<h2>Over seeds: mean ± standard deviation</h2>"
        yield from _table([*(key for key in results.varied if key != "seed"), "seeds", *_metrics(results)], spread)
    for about, path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        kind = ' class="wide"' if path.stem in WIDE else ""
        yield f'<figure{kind}><img alt="{html.escape(about)}" src="data:image/png;base64,{data}"></figure>'
    yield "<h2>Jobs</h2>"
    names = ["job", "status", "step", "seconds", *results.varied, *_metrics(results)]
    yield from _table(names, (_line(results, job) for job in results.jobs), [_kind(job, best) for job in results.jobs])
    yield f"<script>{SORT}</script></body></html>"


def _metrics(results: Results) -> list[str]:
    names = [*results.objectives, *COLUMNS]
    return [name for name in dict.fromkeys(names) if any(name in job.metrics for job in results.jobs)]


def _line(results: Results, job: Result) -> list[str]:
    settings = [_text(job.settings.get(key, "–")) for key in results.varied]
    return [str(job.number), job.status, str(job.step), f"{job.seconds:.0f}", *settings,
            *(number(job.metrics.get(name)) for name in _metrics(results))]  # fmt: skip


def _deltas(results: Results) -> Iterator[list[str]]:
    """The baseline's values, then how much each other job differs from them, and by what setting."""
    baseline = results.jobs[0]
    yield ["baseline: " + " ".join(f"{k}={_text(v)}" for k, v in baseline.settings.items()),
           *(number(baseline.metrics.get(name)) for name in _metrics(results))]  # fmt: skip
    for job in results.jobs[1:]:
        changed = [f"{key}={_text(value)}" for key, value in job.settings.items() if value != baseline.settings.get(key)]
        differences = [job.metrics.get(name, math.nan) - baseline.metrics.get(name, math.nan) for name in _metrics(results)]
        yield [" ".join(changed), *("–" if math.isnan(d) else f"{d:+.4g}" for d in differences)]


def _spread(results: Results) -> Iterator[list[str]]:
    """Where jobs differ by their seed: one line for each of the other settings."""
    groups: dict[tuple, list[Result]] = {}
    for job in results.jobs:
        if job.is_complete and "seed" in job.settings:
            groups.setdefault(tuple(job.settings.get(key) for key in results.varied if key != "seed"), []).append(job)
    for settings, jobs in groups.items():
        if len(jobs) > 1:
            columns = [[job.metrics[name] for job in jobs if name in job.metrics] for name in _metrics(results)]
            values = [f"{statistics.mean(c):.4g} ± {statistics.stdev(c):.2g}" if len(c) > 1 else "–" for c in columns]
            yield [*(_text(value) for value in settings), str(len(jobs)), *values]


def _kind(job: Result, best: Result | None) -> str:
    return "best" if job is best else "" if job.is_complete else "ended"


def _table(names: Sequence[str], lines: Iterator[list[str]] | list[list[str]], kinds: Sequence[str] | None = None) -> Iterator[str]:
    yield (
        '<table class="jobs"><thead><tr>'
        + "".join(f"<th>{html.escape(COLUMNS.get(name, name))}</th>" for name in names)
        + "</tr></thead><tbody>"
    )
    for i, line in enumerate(lines):
        kind = f' class="{kinds[i]}"' if kinds and kinds[i] else ""
        yield f"<tr{kind}>" + "".join(f"<td>{html.escape(text)}</td>" for text in line) + "</tr>"
    yield "</tbody></table>"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
