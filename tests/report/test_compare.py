"""The page of several SAEs: its numbers, and in a browser its table, its plots and its matched latents."""

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_lightning.evaluation.recovery import matched
from sae_lightning.report import compare
from sae_lightning.report.compare import Compared
from tests.evaluation.conftest import rows, sae  # noqa: F401 (fixtures)
from tests.report.test_run_page import HOSTILE, data, looked, some  # noqa: F401 (fixtures)

NAMES = ["topk-16", "</script><script>window.hacked=5</script>", '"><img src=x onerror=window.hacked=6>', "topk-8"]
SETTING = "<img src=x onerror=window.hacked=7>"
SCORES = [
    {"l0": 16.0, "explained_variance": 0.8, "kl": 0.25, "dead_pct": 3.0, "ce_clean": 3.5, "rows": 200.0, "mse": 0.25},
    {"l0": 16.5, "explained_variance": 0.9, "kl": 0.5, "dead_pct": 12.0, "ce_clean": 3.5, "rows": 200.0},
    {"l0": 32.0, "explained_variance": 0.95, "dead_pct": 7.0, "ce_clean": 3.5, "rows": 200.0, "cosine": 0.5},
    {"l0": 8.0, "explained_variance": 0.5, "kl": 1.5, "dead_pct": 100.0, "ce_clean": 3.5, "rows": 200.0},
]


@pytest.fixture
def of(tmp_path: Path, some) -> list[Compared]:  # noqa: F811
    """Four runs as a page reads them; two with a page of their own, one that was never logged."""
    made = []
    for i, name in enumerate(NAMES):
        run = tmp_path / f"run <{i}>"
        run.mkdir()
        if i < 3:
            lines = [
                f"{step},{kind}/{of},{1 / step + i}" for step in range(1, 900, 9) for of in ("loss", "l0") for kind in ("train", "val")
            ]
            (run / "metrics.csv").write_text("\n".join(["step,metric,value", *lines]) + "\n")
        if i < 2:
            (run / "report.html").write_text("a page")
        some.about.update(architecture="topk", transformer={"name": "words"}, hooks={"x": ["here"], "y": ["here"]})
        some.save(run / "sae")
        told = {
            "model": "topk",
            "data": f"/secret/place/{SETTING}" if i else "text",
            "seed": i // 2,
            **({"model.k": [16, 8, 128][i]} if i < 3 else {}),
        }
        null = {"pca": {"l0": 16.0, "explained_variance": 0.25}} if i < 2 else {"pca": {"l0": 32.0, "explained_variance": 0.3}}
        made.append(Compared(name, run, run / "sae", run, told, {"sae": SCORES[i], **null}))
    return made


@pytest.fixture
def others(some, sae):  # noqa: F811
    """The same latents in another order; and others."""
    order = torch.randperm(some.d_sae, generator=torch.Generator().manual_seed(2))
    shuffled = sae(some.W_enc[order])
    shuffled.b_enc[:] = some.b_enc[order]
    return order, shuffled, sae(torch.randn(200, some.W_enc.shape[1], generator=torch.Generator().manual_seed(3)), k=20)


@pytest.fixture
def page(of, data, some, others, tmp_path) -> Path:  # noqa: F811
    from sae_lightning.report.pairs import matches

    found = matches([(0, some), (1, others[1]), (2, others[2])], data, 10_000)
    return compare.write(of, tmp_path, "4 <SAEs>", found)


def unpacked(packed: list[str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed[1]), f"<{packed[0]}")


def test_latents_in_another_order_are_found_again(data, some, others):  # noqa: F811
    from sae_lightning.report.pairs import matches

    order, shuffled, other = others
    assert matches([(0, some)], data, 10_000) is None
    found = matches([(0, some), (5, shuffled), (6, other)], data, 10_000)
    assert found is not None
    dense, dense_other = some.encode(data.x).dense(), other.encode(data.x).dense()
    living = (dense > 0).any(0)
    assert [side["sae"] for side in found["saes"]] == [0, 5, 6]
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    same, different = found["pairs"][:2]
    left, right = unpacked(same["left"]), unpacked(same["right"])
    assert left.tolist() == living.nonzero()[:, 0].tolist()
    assert order[torch.from_numpy(right.astype(int))].tolist() == left.tolist()
    assert unpacked(same["cosine"]) == pytest.approx(1)
    assert unpacked(same["together"]) == pytest.approx(1)
    assert 0 < unpacked(same["chance"]).mean() < 0.9
    living_other = (dense_other > 0).any(0)
    assert unpacked(different["cosine"]).sum() == pytest.approx(
        float(matched(some.W_dec[living], other.W_dec[living_other]).sum()), rel=1e-5
    )
    i, j = int(unpacked(different["left"])[7]), int(unpacked(different["right"])[7])
    one, two = dense[:, i] > 0, dense_other[:, j] > 0
    assert unpacked(different["together"])[7] == pytest.approx(int((one & two).sum()) / int((one | two).sum()))
    side = found["saes"][0]
    assert unpacked(side["density"]) == pytest.approx((dense > 0).float().mean(0)[living].numpy())
    assert unpacked(side["max"]) == pytest.approx(dense.amax(0)[living].numpy())
    assert unpacked(side["value"])[unpacked(side["starts"])[:-1]] == pytest.approx(unpacked(side["max"]))  # the strongest context first


def test_of_many_latents_some_are_matched(data, some, others, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    from sae_lightning.report import pairs

    monkeypatch.setattr(pairs, "LATENTS", 10)
    found = pairs.matches([(0, some), (1, others[1])], data, 10_000)
    assert found is not None
    assert len(unpacked(found["pairs"][0]["left"])) == 10
    assert unpacked(found["pairs"][0]["cosine"]) == pytest.approx(1)  # with their partners among all of the other
    assert found["pairs"][0]["living"][0] > 100


def test_a_line_is_of_the_best_at_each_l0():
    points = {4: (32.0, 0.7), 1: (8.0, 0.5), 2: (8.4, 0.6), 3: (16.0, 0.9)}
    assert compare.line(points, is_less_better=False) == [2, 3, 4]
    assert compare.line(points, is_less_better=True) == [1, 3, 4]
    assert compare.line({}, is_less_better=True) == []


def test_no_two_of_few_have_one_colour():
    for models in (["a"] * 10, ["a", "b", "c"], ["a"] * 5 + ["b"] * 5, ["a"]):
        assert len(set(compare.colours(models, list(range(len(models)))))) == len(models)
    assert len(compare.colours(["a", "b"] * 100, list(range(200)))) == 200


def test_the_null_models_of_one_l0_stand_there_once(of):
    assert [(name, scores["explained_variance"]) for name, scores in compare.nulls(of)] == [("pca, L0 16", 0.25), ("pca, L0 32", 0.3)]


def test_where_it_goes(tmp_path: Path):
    assert compare.common_folder([tmp_path / "a/b/c", tmp_path / "a/d"]) == (tmp_path / "a").resolve()
    assert compare.common_folder([Path("/one"), Path("/two")]) == Path("/one")


def test_table_and_plots(page):
    seen = looked(
        page,
        """
        await wait(1500);
        const rows = () => $$("#scores tbody tr").filter(e => e.offsetHeight), first = () => rows().map(r => r.cells[0].innerText.trim());
        const heads = $$("#scores th"), head = name => heads.find(h => h.innerText.startsWith(name)).querySelector("button");
        seen.title = text("h1")[0];
        seen.unlinked = ["left", "right"].map(id => document.getElementById(id).value); seen.lead = text(".lead")[0]; seen.same = text("#scores .note")[0];
        seen.heads = heads.filter(h => h.offsetWidth).map(h => h.innerText.split("\\n")[0]);
        seen.before = first(); seen.best = $$("#scores td.best").map(e => e.innerText); seen.settings = text("#scores td.setting");
        head("kl").click(); seen.kl = first(); head("kl").click(); seen.no_kl = first(); head("explained").click(); seen.variance = first();
        head("model.k").click(); seen.k = first(); head("SAE").click(); seen.names = first();
        document.querySelector("#with-nulls").click(); seen.without = first(); document.querySelector("#all-scores").click();
        seen.all = heads.filter(h => h.offsetWidth).length;
        seen.links = $$("#scores td a").map(e => e.getAttribute("href"));
        seen.fronts = $$("#fronts .main-svg").length; seen.points = $$("#front0 .points path").length;
        seen.legend = $$("#front0 .legendtext").map(e => e.textContent);
        seen.hover = document.getElementById("front0").data.flatMap(t => t.text ?? []).join("|");
        const drawn = () => document.getElementById("panel0").data.map(t => t.name); seen.curves = drawn().length;
        $$("#names button")[0].click(); seen.fewer = drawn(); document.querySelector("#none").click(); seen.none = drawn();
        document.querySelector("#every").click(); seen.every = drawn().length;
        const front = document.getElementById("front1"), model = front.data.findIndex(t => t.mode === "markers"); document.querySelector("#none").click();
        front.emit("plotly_click", { points: [{ customdata: front.data[model].customdata[1] }] }); seen.clicked = drawn(); seen.found = text("tr.chosen td")[0];
        document.getElementById("theme").click(); seen.dark = document.documentElement.classList.contains("dark"); seen.width = innerWidth;
        """,
        "--window-size=500,1600",
    )
    assert seen["title"] == "4 <SAEs>"
    assert seen["unlinked"] == ["0", "2"]  # the first ones of two seeds
    assert "model topk" in seen["lead"]
    assert "words" in seen["lead"]
    assert "ce clean 3.5 nats" in seen["same"]
    assert "rows 200." in seen["same"]
    shown = ["SAE", "data", "seed", "model.k", "l0", "explained variance ↑", "kl ↓", "dead pct ↓"]
    assert [head.replace("\xa0", " ") for head in seen["heads"]] == shown
    assert seen["before"] == [*NAMES, "pca, L0 16", "pca, L0 32"]
    assert seen["best"] == ["0.25", "3", "0.95"]  # row by row; of L0 none is best
    assert f"…/{SETTING}" in seen["settings"]
    assert seen["kl"][:3] == [NAMES[0], NAMES[1], NAMES[3]]
    assert seen["no_kl"][:3] == [NAMES[3], NAMES[1], NAMES[0]]  # what has none stays last
    assert seen["variance"][:4] == [NAMES[2], NAMES[1], NAMES[0], NAMES[3]]
    assert seen["k"][:4] == [NAMES[1], NAMES[0], NAMES[2], NAMES[3]]  # as numbers: 8, 16, 128
    assert set(seen["names"]) == set(seen["before"])
    assert len(seen["without"]) == 4
    assert seen["all"] == len(shown) + 1  # cosine; mse is no headline
    assert set(seen["links"]) == {"run%20%3C0%3E/report.html", "run%20%3C1%3E/report.html"}
    assert seen["fronts"] >= 3
    assert seen["points"] == 4
    assert seen["legend"] == ["topk"]
    assert "&lt;img" in seen["hover"]
    assert "<img" not in seen["hover"]
    assert seen["curves"] == seen["every"] == 6
    assert len(seen["fewer"]) == 4
    assert NAMES[0] not in seen["fewer"]
    assert seen["none"] == []
    assert set(seen["clicked"]) == {NAMES[1].replace("<", "&lt;").replace(">", "&gt;")}
    assert seen["found"].strip() == NAMES[1]
    assert seen["dark"] is True
    assert (seen["width"], seen["overflow"]) == (500, 0)


def test_pairs_are_chosen_sorted_searched_and_linked_to(page, data, some, others):  # noqa: F811
    fires = (some.encode(data.x).dense() > 0).sum(0)
    target = int((fires > 40).nonzero()[3])
    seen = looked(
        page,
        """
        const key = async k => { dispatchEvent(new KeyboardEvent("keydown", { key: k })); await wait(60);
        }, column = i => text("#lines .line").map(t => t.split("\\n")[i]);
        const left = document.getElementById("left"), right = document.getElementById("right"), choose = async (e, v) => { e.value = v;
        e.dispatchEvent(new Event("change")); await wait(30); };
        seen.linked = text("#pair h3"); seen.marked = text(".line.chosen")[0]; seen.options = [...left.options].map(o => o.text);
        seen.facts = text("#matched")[0];
        seen.contexts = $$("#pair .sides > div").map(e => [...e.querySelectorAll(".context > b")].map(b => +b.innerText));
        seen.page = $$("#pair a").map(e => e.getAttribute("href"));
        await choose(right, "2"); seen.other = text("#matched")[0]; seen.chosen = [left.value, right.value]; await choose(left, "2");
        seen.swapped = [left.value, right.value];
        $$("#heads button")[3].click(); await wait(30); seen.densest = column(3).map(Number); seen.ids = column(2);
        await choose(left, "0"); seen.pair = [left.value, right.value]; document.getElementById("swap").click();
        seen.turned = [left.value, right.value];
        document.activeElement.blur(); $$("#heads button")[2].click(); await wait(30); location.hash = ""; location.hash = "pair=0-1-TARGET";
        await wait(60);
        await key("j"); seen.next = location.hash; await key("k"); seen.before = location.hash;
        const search = document.getElementById("search"); search.value = "w17"; search.dispatchEvent(new Event("input"));
        seen.found = text("#count")[0];
        search.value = "nothing like it"; search.dispatchEvent(new Event("input")); seen.none = text("#count")[0];
        location.hash = "pair=0-1-99999"; await wait(60); seen.unknown = text("#pair")[0];
        await wait(1000); seen.bars = $$("#cosines .points path").length; seen.tokens = data.pairs.tokens; seen.width = innerWidth;
        """.replace("TARGET", str(target)),
        "--window-size=800,1600",
        hash_=f"#pair=0-1-{target}",
    )
    living = (fires > 0).nonzero()[:, 0].tolist()
    partner = int((others[0] == target).nonzero())
    assert seen["linked"][0].startswith(f"{target} ↔ {partner} · cosine 1.000 · active together in 100 %")
    assert seen["linked"][1:] == [f"Latent {target} of {NAMES[0]}", f"Latent {partner} of {NAMES[1]}"]
    assert seen["marked"].split("\n")[:3] == ["1.00", "1.00", str(target)]
    assert seen["options"] == NAMES[:3]
    assert seen["facts"].split("\n")[0] == "1"
    assert f"{len(living)}\n" in seen["facts"]
    values = some.encode(data.x).dense()[:, target].sort(descending=True).values[:6].tolist()
    assert seen["contexts"][0] == pytest.approx(values, rel=5e-3)
    assert seen["contexts"][0] == seen["contexts"][1]
    assert f"run%20%3C0%3E/report.html#latent={target}" in seen["page"]
    assert "Both began with the same directions (seed 0)" in seen["facts"]
    assert "Both began" not in seen["other"]
    assert (seen["chosen"], seen["swapped"]) == (["0", "2"], ["2", "0"])
    assert seen["densest"] == sorted(seen["densest"], reverse=True)
    assert seen["pair"] == ["0", "2"]
    assert seen["turned"] == ["2", "0"]
    after = living[living.index(target) + 1]
    assert (seen["next"], seen["before"]) == (f"#pair=0-1-{after}", f"#pair=0-1-{target}")
    assert 0 < int(seen["found"].split()[0]) < len(living)
    assert seen["none"].startswith("0 of")
    assert "99999 has no partner" in seen["unknown"]
    assert seen["bars"] > 5
    assert (seen["width"], seen["overflow"]) == (800, 0)
    assert {" " + word for word in HOSTILE} <= {word if word.startswith(" ") else " " + word for word in seen["tokens"]}


def test_no_path_of_the_machine_and_no_network(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    own = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", text, flags=re.DOTALL)
    assert str(tmp_path) not in text
    assert "/secret" not in text
    assert not re.search(r"""(src|href)=["'](?!data:|#|run%20)""", own.replace("<img src=x", "").replace(r"\u003cimg src=x", ""))
    assert "http" not in own
    assert text.count('id="plotly"') == 1


def test_a_page_without_pairs_says_why_and_many_saes_show_the_curves_of_some(of, tmp_path):
    many = [one._replace(name=f"{i}-{one.name}") for i in range(50) for one in of]
    made = compare.write(many, tmp_path, "many", notes=["<b>note</b>"], objectives={"val/miracle_distance": "minimize"})
    seen: dict[str, Any] = looked(made, """
        await wait(1000); seen.said = text("#pairs")[0]; seen.notes = text(".note").slice(0, 1); seen.width = innerWidth;
        seen.shown = new Set(document.getElementById("panel0").data.map(t => t.name)).size; seen.names = $$("#names button").length;
        seen.points = $$("#front0 .points path").length;""", "--window-size=1300,1600")  # fmt: skip
    assert "here no two were" in seen["said"]
    assert seen["notes"] == ["<b>note</b>"]
    assert seen["names"] == 200
    assert seen["shown"] <= compare.CURVES_SHOWN
    assert seen["points"] == 200
    assert (seen["width"], seen["overflow"]) == (1300, 0)
    assert made.stat().st_size < 12e6
