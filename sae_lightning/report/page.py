"""What all pages share: one html file that opens from disk, in which no text of a data set is anything but text."""

import base64
import json
import re
from typing import Any

import numpy as np

PER_CHUNK = 256
"""Latents whose contexts, or pictures, are decoded together."""


def rendered(template: str, *, shown: Any, **values: Any) -> str:
    """A page of `templates`: every value is escaped. `shown`: what its script reads, as JSON; plotly.js is inside once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sae_lightning.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(data=_json(shown), plotly=_plotly(), **values)


def packed(values: np.ndarray, kind: str) -> list[str]:
    """Kind and bytes of an array, as a page's script reads them. `kind`: as numpy names it, little-endian."""
    return [kind.lstrip("<"), base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()]


def without_folders(text: str) -> str:
    """Without the folders of this machine: of an absolute path the last name is left."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\",]+/)+([^\s/'\",]*)", r"…/\1", text)


def _json(value: Any) -> str:
    """Which nothing in it can end: a text of a dataset may hold anything."""
    return (
        json.dumps(value, ensure_ascii=False, allow_nan=False)
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script").replace("<!--", "<\\!--")
