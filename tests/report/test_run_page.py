"""The page of a run in a browser: it is searched, sorted, paged and linked to, and hostile texts stay texts."""

import html
import json
import re
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from tests.evaluation.conftest import rows, sae  # noqa: F401 (fixtures)
from tests.evaluation.words import EMBEDDED, Words
from tests.report.test_in_chromium import chromium

D, LATENTS, CONTEXT, SEQUENCES = 16, 300, 30, 25
HOSTILE = [
    "</script><script>window.hacked=1</script>", "<img/src=x/onerror=window.hacked=2>", "<!--", "&lt;b&gt;", "\u2028", "${window.hacked=3}", "'\"`",
    "{{hacked}}",
]  # fmt: skip
SCORES = {"sae": {"explained_variance": 0.8, "<b>own</b>": float("nan"), "mse": 0.25}, "pca": {"explained_variance": 0.5}}


class Wild(Words):
    """Words that no tokenizer of a test could split: decoded as they are."""

    def tokenizer(self):
        tokens = self.tokens

        class Tokenizer:
            def convert_ids_to_tokens(self, ids):
                return [tokens[i] for i in ids]

            def decode(self, ids, **_: Any) -> str:
                return "".join(tokens[i] for i in ids).replace("▁", " ").lstrip(" ")

        return Tokenizer()


@pytest.fixture
def data(rows):  # noqa: F811
    g = torch.Generator().manual_seed(0)
    transformer = Wild([*HOSTILE, *(f"w{i}" for i in range(50))])
    ids = torch.randint(2, len(transformer.tokens), (SEQUENCES, CONTEXT), generator=g)
    ids[:, 0] = 0
    x = torch.randn(SEQUENCES * (CONTEXT - 1), D, generator=g)
    return rows(x, transformer=transformer, hook=EMBEDDED, tokens=ids, special=ids == 0)


@pytest.fixture
def some(sae):  # noqa: F811
    g = torch.Generator().manual_seed(1)
    made = sae(torch.randn(LATENTS, D, generator=g))
    made.b_enc[:] = -6 * torch.rand(LATENTS, generator=g)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, as far as a page reads it."""
    folder = tmp_path / "topk-k4" / "<now>"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(f"name: '<script>window.hacked=4</script>'\npath: {tmp_path}/stores/mine\n")
    lines = [f"{step},{name},{1 / step}" for step in range(1, 900) for name in ("train/loss", "loss/auxk", "train/l0", "time/step_ms")]
    (folder / "metrics.csv").write_text("\n".join(["step,metric,value", *lines, "5,val/loss,nan"]) + "\n")
    return folder


@pytest.fixture
def page(data, some, run) -> Path:
    from sae_lightning.report.run_page import Page

    return Page()(some, data, SCORES, run, run)


LOOK = """
<pre id="found"></pre><script>
addEventListener("load", () => setTimeout(() => {
  const seen = {}, wait = ms => new Promise(f => setTimeout(f, ms)), $$ = s => [...document.querySelectorAll(s)], text = s => $$(s).map(e => e.innerText);
  (async () => { try { BODY } catch (error) { seen.error = String(error); }
    seen.hacked = window.hacked ?? null; seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    document.getElementById("found").innerText = JSON.stringify(seen); })();
}, 300));
</script>"""


def looked(page: Path, body: str, *words: str, hash_: str = "") -> dict[str, Any]:
    """What a script saw that stands at the end of the page."""
    driven = page.with_name("looked.html")
    whole = page.read_text(encoding="utf-8")
    driven.write_text(whole[: whole.rindex("</body>")] + LOOK.replace("BODY", body) + "</body></html>", encoding="utf-8")
    found = re.search(r'<pre id="found">(.*?)</pre>', chromium("--dump-dom", *words, driven.as_uri() + hash_), re.DOTALL)
    assert found is not None and found[1], "the page's script did not come to its end"
    seen = json.loads(html.unescape(found[1]))
    assert "error" not in seen, seen["error"]
    assert seen["hacked"] is None
    return seen


def test_what_stands_on_it(page, some, data):
    seen = looked(
        page,
        """
        await wait(1500);
        seen.lines = text("#lines .line"); seen.count = text("#count")[0]; seen.title = text("h1")[0]; seen.scores = text("#scores tbody tr");
        seen.curves = $$(".chart .main-svg").length; seen.legend = $$("#panel0 .legendtext").map(e => e.textContent);
        seen.configuration = document.querySelector("pre").textContent;
        document.querySelector("#all-scores").click(); seen.all = $$("#scores tbody tr").filter(e => e.offsetHeight).length;
        seen.more = document.querySelector("#scores table").innerText; seen.contexts = text("#contexts .context"); seen.facts = text(".facts")[0];
        """,
    )
    fires = some.encode(data.x).fires()
    living = int((fires > 0).sum())
    assert seen["count"] == f"{living} latents"
    first = seen["lines"][0].split("\n")
    assert first[0] == str(int(fires.argmax()))  # by density at first
    assert float(first[1]) == pytest.approx(float(fires.max()) / len(data.x), rel=5e-3)
    assert 20 < len(seen["lines"]) < living  # those in view alone
    assert seen["title"] == "topk-k4 · <now>"
    assert "<b>own</b>" in seen["more"]
    assert seen["all"] == 3
    assert seen["curves"] >= 3
    assert {"train/loss", "loss/auxk"} <= set(seen["legend"])
    assert "/stores" not in seen["configuration"].replace("…/", "")
    assert "<script>window.hacked=4</script>" in seen["configuration"]
    assert len(seen["contexts"]) == 10
    assert "% of rows" in seen["facts"]
    assert seen["overflow"] <= 0


def test_search_sort_permalink_keys_and_paging(page, some, data):
    dense = some.encode(data.x).dense()
    fires, largest = (dense > 0).sum(0), dense.amax(0)
    target = int((fires * (fires > 40)).nonzero()[3])
    seen = looked(
        page,
        """
        const search = document.getElementById("search"), type = async t => { search.value = t; search.dispatchEvent(new Event("input")); await wait(30); };
        const key = async k => { dispatchEvent(new KeyboardEvent("keydown", { key: k })); await wait(60); };
        seen.linked = text("#latent h3")[0]; seen.marked = text(".line.chosen")[0];
        const contexts = () => text("#contexts .context > b");
        seen.top = contexts(); $$(".tabs button")[4].click(); seen.weak = contexts(); $$(".tabs button")[1].click(); seen.strong = contexts();
        await type("1"); seen.found = text("#lines .line").map(t => t.split("\\n")[0]); seen.counted = text("#count")[0];
        await type("w17"); seen.token = text("#count")[0]; await type("nothing like it"); seen.none = text("#count")[0]; await type("");
        const heads = $$("#heads button"), column = i => text("#lines .line").map(t => t.split("\\n")[i]);
        heads[3].click(); await wait(30); seen.max = column(0); $$("#heads button")[3].click(); await wait(30); seen.min = column(0);
        $$("#heads button")[0].click(); await wait(30); seen.ids = column(0);
        document.activeElement.blur(); location.hash = "latent=" + seen.ids[0]; await wait(60);
        await key("j"); seen.next = location.hash; await key("k"); seen.before = location.hash;
        await key("/"); seen.focus = document.activeElement.id; search.blur();
        const box = document.getElementById("viewport"); box.scrollTop = 1e6; box.dispatchEvent(new Event("scroll")); seen.last = column(0).at(-1);
        document.querySelector("#latent .columns a").click(); await wait(60); seen.neighbour = text("#latent h3")[0];
        location.hash = "latent=999999"; await wait(60); seen.unknown = text("#latent")[0];
        """,
        hash_=f"#latent={target}",
    )
    living = fires.nonzero()[:, 0]
    assert seen["linked"] == f"Latent {target}"
    assert seen["marked"].split("\n")[0] == str(target)
    values = dense[:, target][dense[:, target] > 0].sort(descending=True).values
    assert [float(value) for value in seen["top"]] == pytest.approx(values[:10].tolist(), rel=5e-3)
    assert len(seen["weak"]) == len(seen["strong"]) == 2
    assert max(map(float, seen["weak"])) < min(map(float, seen["strong"])) <= float(values[10]) * 1.005
    with_1 = [str(int(latent)) for latent in living if str(int(latent)).startswith("1")]
    assert set(seen["found"]) <= set(with_1)
    assert seen["counted"] == f"{len(with_1)} of {len(living)} latents"
    assert 0 < int(seen["token"].split()[0]) < len(living)
    assert seen["none"].startswith("0 of")
    by_max = sorted(living.tolist(), key=lambda latent: -float(largest[latent]))
    assert seen["max"][:20] == [str(latent) for latent in by_max[:20]]
    assert seen["min"][0] == str(by_max[-1])
    assert seen["ids"][:3] == [str(latent) for latent in living[:3].tolist()]
    assert (seen["next"], seen["before"]) == (f"#latent={living[1]}", f"#latent={living[0]}")
    assert seen["focus"] == "search"
    assert seen["last"] == str(int(living[-1]))
    assert seen["neighbour"].startswith("Latent ")
    assert "999999 is not on this page" in seen["unknown"]


def test_hostile_tokens_are_shown_as_they_are(page):
    seen = looked(page, """seen.said = data.features.tokens; for (const id of array(data.features.latents)) { location.hash = "latent=" + id; await wait(4); }
                           seen.shown = text("#contexts p").join("|");""")  # fmt: skip
    assert {" " + word for word in HOSTILE} <= {text if text.startswith(" ") else " " + text for text in seen["said"]}
    assert "hacked" in seen["shown"] or "<!--" in seen["shown"] or "w1" in seen["shown"]


@pytest.mark.parametrize("width", [420, 900, 1400])
def test_no_width_is_too_small(page, tmp_path, width):
    seen = looked(page, "seen.width = innerWidth;", f"--window-size={width},1600")
    assert seen["overflow"] <= 0
    picture = tmp_path / "page.png"
    chromium(f"--screenshot={picture}", f"--window-size={width},1600", page.as_uri())
    assert plt.imread(picture)[..., :3].std() > 0.05


def test_no_path_of_the_machine_and_no_network(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    own = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", text, flags=re.DOTALL)
    assert str(tmp_path) not in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", own)
    assert "http" not in own


def test_rows_without_a_text_have_features_too(some, rows, run):  # noqa: F811
    from sae_lightning.report.run_page import Page

    class Plain(rows):
        def tokens_held_out(self, n: int):
            from sae_lightning.errors import InputError

            raise InputError("no tokens")

    made = Page()(some, Plain(torch.randn(200, D, generator=torch.Generator().manual_seed(0))), SCORES, run, run)
    seen = looked(made, """seen.latent = text("#latent")[0]; seen.n = data.features.n;""")
    assert seen["n"] > 100
    assert "nearest decoder directions" in seen["latent"]
    assert "where it is active" not in seen["latent"]


def test_what_cannot_be_is_refused():
    from sae_lightning.errors import InputError
    from sae_lightning.report.run_page import Page

    with pytest.raises(InputError, match="must be positive"):
        Page(rows=0)


# Slow: a page of 25 000 latents.
@pytest.mark.slow
def test_a_page_of_25_000_latents_opens_nearly_as_fast_as_an_empty_one(data, sae, run, tmp_path):  # noqa: F811
    from sae_lightning.report.run_page import Page

    g = torch.Generator().manual_seed(1)
    many = sae(torch.randn(25_000, D, generator=g), k=1500)
    made = Page()(many, data, SCORES, run, run)
    megabytes = made.stat().st_size / 1e6
    empty = tmp_path / "empty.html"
    empty.write_text("<!doctype html><title>empty</title>")

    def seconds(page: Path) -> float:
        took = []
        for _ in range(2):
            began = time.perf_counter()
            chromium(f"--screenshot={tmp_path}/opened.png", page.as_uri())
            took.append(time.perf_counter() - began)
        return min(took)

    seen = looked(made, """
        const box = document.getElementById("viewport"); box.scrollTop = 450000; box.dispatchEvent(new Event("scroll"));
        seen.n = data.features.n; seen.lines = document.querySelectorAll("#lines .line").length;""")  # fmt: skip
    ours, nothing = seconds(made), seconds(empty)
    ratio = ours / nothing
    print(f"{megabytes:.1f} MB, {seen['n']} latents; opened in {ours:.2f} s, {ratio:.2f} times an empty page")
    assert seen["n"] > 24_000
    assert seen["lines"] < 100
    assert megabytes < 60
    assert ratio < 15  # 3 on an idle machine
