"""The page of a sweep in a browser: its pictures are seen, and a click on a heading sorts. Chromium comes from the system (.ci/run)."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from sae_lightning.report.sweep_page import report
from tests.report.test_sweep import searched  # noqa: F401 (a fixture)

LOOK = """
<pre id="found"></pre><script>
addEventListener("load", () => {
  const jobs = [...document.querySelectorAll("table.jobs")].at(-1), column = i => [...jobs.tBodies[0].rows].map(row => row.cells[i].innerText);
  const heads = [...jobs.querySelectorAll("th")], k = heads.findIndex(head => head.innerText === "model.k"), seen = { before: column(k) };
  heads[k].click(); seen.up = column(k); heads[k].click(); seen.down = column(k);
  seen.pictures = [...document.images].map(image => [image.alt, image.naturalWidth, image.getBoundingClientRect().width]);
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.getElementById("found").innerText = JSON.stringify(seen);
});
</script>"""


def chromium(*words: str) -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,2400",
        "--virtual-time-budget=5000",
    ]
    return subprocess.run([program, *flags, *words], capture_output=True, text=True, check=True, timeout=120).stdout


def look(page: Path) -> dict[str, Any]:
    """What a script saw that stands at the end of the page."""
    looked = page.with_name("looked.html")
    looked.write_text(page.read_text().replace("</body>", f"{LOOK}</body>"))
    found = re.search(r'<pre id="found">(.*?)</pre>', chromium("--dump-dom", looked.as_uri()), re.DOTALL)
    assert found is not None and found[1], "the page's script did not come to its end"
    return json.loads(html.unescape(found[1]))


def test_the_page_in_a_browser(searched, tmp_path):  # noqa: F811
    page = report(searched)
    seen = look(page)
    assert seen["before"] == ["8", "16", "32", "4"]  # as numbers, not as texts
    assert seen["up"] == ["4", "8", "16", "32"]
    assert seen["down"] == ["32", "16", "8", "4"]
    assert len(seen["pictures"]) == 7
    assert all(alt and natural > 300 and shown > 300 for alt, natural, shown in seen["pictures"])
    assert seen["overflow"] <= 0
    picture = tmp_path / "page.png"
    chromium(f"--screenshot={picture}", page.as_uri())
    assert plt.imread(picture)[..., :3].std() > 0.05
