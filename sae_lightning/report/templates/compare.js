/** A text that the plots' library shows as it is: it reads some tags. */
const plain = t => t.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const dot = colour => { const d = make("i", undefined, "dot"); d.style.background = colour; return d; };
const nulls = $("with-nulls"), table = document.querySelector("#scores table"), box = document.querySelector(".tall");

// -- the table --------------------------------------------------------------------------------------------------------
const heads = [...table.tHead.rows[0].cells];
heads.forEach((head, i) => head.querySelector("button").onclick = () => {
  const now = head.getAttribute("aria-sort"), first = head.dataset.better === "up" ? "descending" : "ascending";
  const way = !now ? first : now === "ascending" ? "descending" : "ascending", sign = way === "ascending" ? 1 : -1;
  heads.forEach(other => other.removeAttribute("aria-sort")); head.setAttribute("aria-sort", way);
  const rows = [...table.tBodies[0].rows], values = new Map(rows.map(row => [row, row.cells[i].dataset.value]));
  const isNumber = [...values.values()].every(value => value === "" || Number.isFinite(+value));
  const order = (a, b) => { const x = values.get(a), y = values.get(b); if ((x === "") !== (y === "")) return x === "" ? 1 : -1; return sign * (isNumber ? x - y : x.localeCompare(y, undefined, { numeric: true })); };
  table.tBodies[0].append(...rows.sort(order));
});
const lineOf = [...table.tBodies[0].rows];
/** The row of an SAE, in view, and its curves. */
function find(i) {
  lineOf.forEach((row, k) => row.classList.toggle("chosen", k === i));
  box.scrollTop = lineOf[i].offsetTop - box.clientHeight / 2; visible.add(i); names();
}
const withNulls = () => { if (nulls) box.classList.toggle("nulls", nulls.checked); };
withNulls();
$("all-scores").onchange = e => box.classList.toggle("all", e.target.checked);
if (nulls) nulls.onchange = () => { withNulls(); draw(); };

// -- against L0 -------------------------------------------------------------------------------------------------------
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"], OF_NULLS = ["x-thin-open", "asterisk-open", "cross-thin-open"];
const models = [...new Set(data.saes.map(sae => sae.model))];
/** A few round numbers of a logarithmic axis. */
function ticksOf(low, high) {
  for (const digits of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 6, 8], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9]]) {
    const ticks = digits.flatMap(digit => Array.from({ length: 10 }, (_, e) => digit * 10 ** (e - 3))).filter(tick => tick >= low && tick <= high).sort((a, b) => a - b);
    if (ticks.length > 3) return ticks;
  }
  return [low * 1.12, high / 1.12];
}
function front(f, i) {
  const css = getComputedStyle(document.documentElement), soft = css.getPropertyValue("--soft").trim(), traces = [];
  const hover = (name, settings, scores) => `<b>${plain(name)}</b>${settings ? "<br>" + plain(settings) : ""}<br>L0 ${short(scores.l0)}, ${f.title} ${short(scores[f.name])}`;
  models.forEach((model, k) => {
    const own = f.points.filter(p => data.saes[p].model === model), on = f.lines[model] ?? [], symbol = SYMBOLS[k % SYMBOLS.length];
    if (!own.length) return;
    const hue = /hsl\((\d+)/.exec(data.saes[own[0]].colour)[1], colour = models.length > 1 ? `hsl(${hue}, 55%, 50%)` : soft, at = (of, name) => of.map(p => data.saes[p].scores[name]);
    traces.push({ x: at(on, "l0"), y: at(on, f.name), mode: "lines", line: { color: colour, width: 1.3 }, opacity: 0.7, hoverinfo: "skip", showlegend: false, legendgroup: model });
    traces.push({ x: at(own, "l0"), y: at(own, f.name), mode: "markers", name: plain(model), legendgroup: model, showlegend: true, hovertemplate: "%{text}<extra></extra>",
      marker: { color: own.map(p => data.saes[p].colour), size: own.length > 40 ? 6 : 9, symbol }, customdata: own, text: own.map(p => hover(data.saes[p].name, data.saes[p].settings, data.saes[p].scores)) });
  });
  const kinds = [...new Set(data.nulls.map(one => one.name.split(",")[0]))];
  if (nulls?.checked) kinds.forEach((kind, k) => {
    const own = data.nulls.filter(one => one.name.split(",")[0] === kind && f.name in one.scores && one.scores.l0 > 0);
    if (own.length) traces.push({ x: own.map(one => one.scores.l0), y: own.map(one => one.scores[f.name]), mode: "markers", name: plain(kind), hovertemplate: "%{text}<extra></extra>",
      marker: { color: soft, size: 8, symbol: OF_NULLS[k % OF_NULLS.length], line: { width: 1.5, color: soft } }, text: own.map(one => hover(one.name, "", one.scores)) });
  });
  const x = traces.flatMap(t => t.x), [low, high] = [Math.min(...x) / 1.12, Math.max(...x) * 1.12], ticks = ticksOf(low, high);
  plot(`front${i}`, traces, { x: { type: "log", title: { text: "L0", standoff: 4 }, tickvals: ticks, ticktext: ticks.map(short), range: [Math.log10(low), Math.log10(high)] }, hovermode: "closest", margin: { l: 52, r: 12, t: 8, b: 40 }, legend: { orientation: "h", font: { size: 10 }, y: -0.2 } });
  const chart = $(`front${i}`);
  chart.removeAllListeners("plotly_click"); chart.on("plotly_click", e => { if (e.points[0].customdata !== undefined) find(e.points[0].customdata); });
}

// -- curves -----------------------------------------------------------------------------------------------------------
const best = n => new Set(data.saes.map((sae, i) => i).filter(i => data.saes[i].rank < n));
let visible = best(data.shown);
function curves(panel, i) {
  const traces = panel.curves.filter(c => visible.has(c.sae)).map(c => ({ x: c.steps, y: c.values, name: plain(data.saes[c.sae].name), type: "scatter", showlegend: false,
    mode: c.kind === "val" ? "lines+markers" : "lines", opacity: c.kind === "val" ? 1 : 0.55, line: { width: c.kind === "val" ? 1.8 : 1.1, color: data.saes[c.sae].colour },
    marker: { size: 5 }, hovertemplate: `%{y:.4g}<extra>%{fullData.name}<br>${c.kind === "val" ? "validation" : "training"}, step %{x}</extra>` }));
  plot(`panel${i}`, traces, { x: { title: { text: "optimizer step", standoff: 4 } }, y: { type: document.querySelector(`[data-panel="${i}"]`).checked ? "log" : "linear" }, hovermode: "closest", margin: { l: 52, r: 12, t: 8, b: 40 } });
}
function names() {
  [...$("names").children].forEach(b => b.setAttribute("aria-pressed", visible.has(+b.dataset.sae)));
  data.curves.forEach(curves);
}
if (data.curves.length) {
  [...data.saes.keys()].sort((a, b) => data.shown < data.saes.length ? data.saes[a].rank - data.saes[b].rank : a - b).forEach(i => {
    const b = make("button"); b.type = "button"; b.dataset.sae = i; b.setAttribute("aria-pressed", visible.has(i)); b.title = data.saes[i].settings;
    b.append(dot(data.saes[i].colour), data.saes[i].name); b.onclick = () => { visible.has(i) ? visible.delete(i) : visible.add(i); names(); };
    $("names").append(b);
  });
  if ($("some")) $("some").onclick = () => { visible = best(data.shown); names(); }; $("every").onclick = () => { visible = best(Infinity); names(); }; $("none").onclick = () => { visible = new Set(); names(); };
  document.querySelectorAll("[data-panel]").forEach(one => one.onchange = () => data.curves.forEach(curves));
}
let histogram = () => {};
function draw() { data.fronts.forEach(front); data.curves.forEach(curves); histogram(); }

// -- latents side by side ---------------------------------------------------------------------------------------------
function pairs(d) {
  const sides = d.saes.map(side => ({ sae: data.saes[side.sae], latents: lazy(side.latents), density: lazy(side.density), max: lazy(side.max), starts: side.starts && lazy(side.starts),
    ids: lazy(side.ids), active: lazy(side.active), value: lazy(side.value), peaks: lazy(side.peaks), n_peaks: side.n_peaks ?? 0 }));
  const places = sides.map(side => { let made; return latent => (made ??= new Map(Array.from(side.latents(), (id, i) => [id, i]))).get(latent); });
  const label = (s, i) => Array.from({ length: sides[s].n_peaks }, (_, k) => sides[s].peaks()[i * sides[s].n_peaks + k]).filter(t => t !== d.none).map(t => seen(d.tokens[t]));
  let a, b, now, labels, order = [], chosen = -1, sorted = "cosine", falling = true;
  for (const id of ["left", "right"]) sides.forEach((side, i) => { const o = make("option", side.sae.name); o.value = i; $(id).append(o); });

  const start = s => sides[s].sae.start[0] == null ? `of its own ${s}` : JSON.stringify(sides[s].sae.start);
  function choose(left, right) {
    if (left === right) right = sides.findIndex((_, i) => i !== left);
    const found = d.pairs.find(p => (p.a === left && p.b === right) || (p.a === right && p.b === left));
    if (!found) { $("left").value = a; $("right").value = b; return; }
    [a, b] = [left, right]; $("left").value = a; $("right").value = b;
    const flip = found.a !== a, ids = [array(found.left), array(found.right)], [l, r] = flip ? ids.reverse() : ids, at = [Array.from(l, places[a]), Array.from(r, places[b])];
    now = { n: l.length, left: l, right: r, cosine: array(found.cosine), together: array(found.together), chance: array(found.chance), living: flip ? [...found.living].reverse() : found.living, at,
      dl: at[0].map(i => sides[a].density()[i]), dr: at[1].map(i => sides[b].density()[i]) };
    labels = at[0].map((i, k) => [label(a, i).join("  "), label(b, at[1][k]).join("  ")]);
    chosen = -1; facts(); histogram(); list();
  }
  const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length, above = values => values.reduce((n, c) => n + (c > 0.7), 0) / values.length;
  function facts() {
    const box = make("div", undefined, "big"), row = (value, chance, text) => box.append(make("b", value), make("span", chance), make("span", text));
    row(short(mean(now.cosine)), `random ${short(mean(now.chance))}`, "mean cosine");
    row(`${short(100 * above(now.cosine))} %`, `random ${short(100 * above(now.chance))} %`, "of the pairs above 0.7");
    row(now.n.toLocaleString("en"), "", `pairs, of ${now.living[0].toLocaleString("en")} and ${now.living[1].toLocaleString("en")} active latents${now.n < Math.min(...now.living) ? ", drawn at random" : ""}`);
    const isSame = start(a) === start(b), note = isSame ? `Both began with the same directions (seed ${sides[a].sae.start[0]}): many cosines are high for that alone. Two seeds show what training finds again.` : "";
    $("matched").replaceChildren(box, make("p", note, "note"));
  }
  histogram = () => {
    const css = getComputedStyle(document.documentElement), colour = name => css.getPropertyValue(name).trim(), bins = { start: -1, end: 1.0001, size: 0.04 };
    plot("cosines", [
      { x: Array.from(now.cosine), type: "histogram", xbins: bins, name: "matched latents", marker: { color: colour("--accent") }, opacity: 0.75, hovertemplate: "%{y} pairs at %{x}<extra></extra>" },
      { x: Array.from(now.chance), type: "histogram", xbins: bins, name: "random directions instead of the right SAE's", marker: { color: colour("--soft") }, opacity: 0.55, hovertemplate: "%{y} pairs at %{x}<extra>random</extra>" },
    ], { barmode: "overlay", bargap: 0.04, margin: { l: 40, r: 8, t: 4, b: 24 }, legend: { orientation: "h", y: -0.16, font: { size: 10 } } });
  };

  const columns = [["cosine", "cosine"], ["together", "together"], ["left", "left"], ["dl", "density"], ["right", "right"], ["dr", "density"], ["label", "left: most on"]];
  const TITLES = { dl: "share of rows in which the left latent is active", dr: "share of rows in which the right latent is active", together: "of the rows where one of the two is active, the share where both are" };
  columns.forEach(([key]) => {
    const head = make("button"); head.type = "button"; head.title = TITLES[key] ?? "";
    head.onclick = () => { falling = sorted === key ? !falling : !["left", "right", "label"].includes(key); sorted = key; list(); };
    $("heads").append(head);
  });
  function list() {
    const words = $("search").value.trim().toLowerCase(), every = Array.from({ length: now.n }, (_, i) => i), sign = falling ? -1 : 1, by = now[sorted];
    order = !words ? every : every.filter(i => /^\d+$/.test(words) ? String(now.left[i]).startsWith(words) || String(now.right[i]).startsWith(words) : labels[i].some(text => text.toLowerCase().includes(words)));
    order.sort((i, j) => sign * (by ? by[i] - by[j] : labels[i][0] < labels[j][0] ? -1 : labels[i][0] > labels[j][0] ? 1 : 0) || i - j);
    [...$("heads").children].forEach((head, i) => head.textContent = columns[i][1] + (columns[i][0] === sorted ? (falling ? " ↓" : " ↑") : ""));
    $("count").textContent = words ? `${order.length} of ${now.n} pairs` : `${now.n} pairs`;
    $("viewport").scrollTop = 0;
    if (chosen < 0 && order.length) show(order[0]); else shown();
  }
  const go = i => { location.hash = link(i); show(i); inView(order.indexOf(i)); };
  const link = i => `#pair=${a}-${b}-${now.left[i]}`;
  const shown = () => lines(order, i => {
    const line = make("a", undefined, i === chosen ? "line chosen" : "line"); line.href = link(i); line.onclick = () => show(i);
    line.append(...[now.cosine[i].toFixed(2), now.together[i].toFixed(2), now.left[i], short(now.dl[i]), now.right[i], short(now.dr[i]), labels[i][0]].map(text => make("span", text)));
    return line;
  });
  function side(s, i, latent) {
    const of = sides[s], box = make("div"), title = make("h3"), facts = make("div", undefined, "facts"), peaks = make("div", undefined, "peaks"), name = make(of.sae.page ? "a" : "span", `Latent ${latent}`);
    if (of.sae.page) name.href = `${of.sae.page}#latent=${latent}`;
    title.append(dot(of.sae.colour), name, ` of ${of.sae.name}`);
    for (const [what, value] of [["active in", `${short(100 * of.density()[i])} % of rows`], ["largest", short(of.max()[i])]]) { const f = make("span", `${what} `); f.append(make("b", value)); facts.append(f); }
    label(s, i).forEach(text => peaks.append(make("span", text, "token"), " "));
    box.append(title, facts, peaks);
    if (of.starts) for (let e = of.starts()[i]; e < of.starts()[i + 1]; e++) box.append(context(d, { ids: of.ids(), active: of.active(), value: of.value() }, e, of.max()[i]));
    return box;
  }
  function show(i) {
    chosen = i; shown();
    const title = make("h3"), both = make("div", undefined, "sides"), own = make("a", `${now.left[i]} ↔ ${now.right[i]}`); own.href = link(i);
    title.append(own, ` · cosine ${now.cosine[i].toFixed(3)} · active together in ${short(100 * now.together[i])} % of the rows where one is`);
    both.append(side(a, now.at[0][i], now.left[i]), side(b, now.at[1][i], now.right[i]));
    $("pair").replaceChildren(title, both);
  }
  function follow() {
    const found = /^#pair=(\d+)-(\d+)-(\d+)$/.exec(location.hash); if (!found || !sides[found[1]] || !sides[found[2]]) return false;
    if (a !== +found[1] || b !== +found[2]) choose(+found[1], +found[2]);
    const i = now.left.indexOf(+found[3]);
    if (i < 0) { $("pair").replaceChildren(make("p", `Latent ${found[3]} has no partner on this page.`, "note")); return true; }
    show(i); inView(order.indexOf(i)); shown();
    return true;
  }
  $("left").onchange = e => choose(+e.target.value, +e.target.value === b ? a : b);
  $("right").onchange = e => choose(+e.target.value === a ? b : a, +e.target.value);
  $("swap").onclick = () => choose(b, a);
  browsed({ list, shown, follow, go, order: () => order, chosen: () => chosen });
  const drawn = histogram; histogram = () => {};
  const first = d.pairs.find(p => start(p.a) !== start(p.b)) ?? d.pairs[0];
  if (!follow()) choose(first.a, first.b); else $("pairs").scrollIntoView();
  histogram = drawn;
}
if (data.pairs) pairs(data.pairs);
