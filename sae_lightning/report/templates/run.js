// -- curves -----------------------------------------------------------------------------------------------------------
function draw() {
  data.panels.forEach((panel, i) => {
    const traces = panel.curves.map(c => ({ x: c.steps, y: c.values, name: c.name, type: "scatter", mode: c.steps.length < 4 ? "lines+markers" : "lines",
      line: { width: 1.6 }, visible: c.shown ? true : "legendonly", hovertemplate: "%{y:.4g}<extra>%{fullData.name}, step %{x}</extra>" }));
    plot(`panel${i}`, traces, { y: { type: document.querySelector(`[data-panel="${i}"]`).checked ? "log" : "linear" } });
  });
}
document.querySelectorAll("[data-panel]").forEach(box => box.onchange = draw);
$("all-scores").onclick = () => document.querySelector("#scores table").classList.toggle("all");

// -- features ---------------------------------------------------------------------------------------------------------
function features(d) {
  const n = d.n, latents = array(d.latents), columns = { latent: latents, density: array(d.density), mean: array(d.mean), max: array(d.max) };
  const peaks = d.peaks ? array(d.peaks) : null, starts = d.starts ? array(d.starts) : null, histogram = lazy(d.histogram), near = lazy(d.near), cosines = lazy(d.cosines);
  const promoted = lazy(d.promoted), up = lazy(d.up), suppressed = lazy(d.suppressed), down = lazy(d.down);
  const place = new Map(Array.from(latents, (latent, i) => [latent, i]));
  const label = i => Array.from({ length: d.n_peaks }, (_, k) => peaks ? peaks[i * d.n_peaks + k] : -1).filter(t => t >= 0).map(t => seen(d.tokens[t])).join("  ");
  const token = t => make("span", seen(d.tokens[t]), "token");
  let order = [], sorted = "density", falling = true, chosen = -1, page = "0";
  const showPictures = d.pictures ? pictures(d.pictures) : null;
  const decoded = new Map(), chunks = document.querySelectorAll("script.chunk");
  function chunk(i) {  // the contexts of some latents, decoded when one of them is looked at
    const k = Math.floor(i / d.per_chunk);
    if (!decoded.has(k)) {
      if (decoded.size > 8) decoded.clear();
      const [ids, active, kind, value, sequence, position] = chunks[k].textContent.split(" ").map((text, i) => new KINDS[d.chunk[i]](bytes(text)));
      decoded.set(k, { ids, active, kind, value, sequence, position, first: starts[k * d.per_chunk] });
    }
    return decoded.get(k);
  }

  // the list
  const heads = [["latent", "latent"], ["density", "density"], ["mean", "mean"], ["max", "max"], ["label", "most active on"]];
  heads.forEach(([key, text]) => {
    const b = make("button", text); b.type = "button"; b.dataset.key = key;
    b.onclick = () => { falling = sorted === key ? !falling : key !== "latent" && key !== "label"; sorted = key; list(); };
    $("heads").append(b);
  });
  const labels = Array.from({ length: n }, (_, i) => label(i)), lower = labels.map(l => l.toLowerCase());
  const promotedText = i => d.promoted ? Array.from({ length: d.n_tokens }, (_, k) => d.tokens[promoted()[i * d.n_tokens + k]]).join("\u0000").toLowerCase() : "";
  function list() {
    const words = $("search").value.trim().toLowerCase();
    const all = Array.from({ length: n }, (_, i) => i);
    order = !words ? all : /^\d+$/.test(words) ? all.filter(i => String(latents[i]).startsWith(words)) : all.filter(i => lower[i].includes(words) || promotedText(i).includes(words));
    const sign = falling ? -1 : 1, by = columns[sorted];
    order.sort(by ? (a, b) => sign * (by[a] - by[b]) || a - b : (a, b) => sign * (labels[a] < labels[b] ? -1 : labels[a] > labels[b] ? 1 : 0) || a - b);
    [...$("heads").children].forEach(b => b.textContent = heads.find(h => h[0] === b.dataset.key)[1] + (b.dataset.key === sorted ? (falling ? " ↓" : " ↑") : ""));
    $("count").textContent = words ? `${order.length} of ${n} latents` : `${n} latents`;
    $("viewport").scrollTop = 0; shown();
  }
  const shown = () => lines(order, i => {
    const line = make("a", undefined, i === chosen ? "line chosen" : "line"); line.href = `#latent=${latents[i]}`;
    line.append(make("span", latents[i]), make("span", short(columns.density[i])), make("span", short(columns.mean[i])), make("span", short(columns.max[i])), make("span", labels[i]));
    return line;
  });

  // one latent
  function go(i) { location.hash = `latent=${latents[i]}`; }
  function tokens(title, ids, amounts, i, kind) {
    const box = make("div"), table = make("table"); box.append(make("h3", title));
    for (let k = 0; k < d.n_tokens; k++) { const r = table.insertRow(); r.insertCell().append(token(ids[i * d.n_tokens + k])); const c = r.insertCell(); c.textContent = (amounts[i * d.n_tokens + k] > 0 ? "+" : "") + short(amounts[i * d.n_tokens + k]); c.className = kind; }
    box.append(table); return box;
  }
  function contexts(i, box) {
    const c = chunk(i); box.replaceChildren();
    for (let e = starts[i]; e < starts[i + 1]; e++) {
      const at = e - c.first;
      if (String(c.kind[at]) === page) box.append(context(d, c, at, columns.max[i], `sequence ${c.sequence[at]}, position ${c.position[at]}`));
    }
    if (!box.children.length) box.append(make("p", "There are none.", "note"));
  }
  function show(i) {
    chosen = i; const at = $("latent"); at.replaceChildren(); shown();
    const title = make("h3"); title.append(make("a", `Latent ${latents[i]}`)); title.firstChild.href = `#latent=${latents[i]}`; at.append(title);
    const facts = make("div", undefined, "facts");
    for (const [name, value] of [["active in", `${short(100 * columns.density[i])} % of rows`], ["mean when active", short(columns.mean[i])], ["largest", short(columns.max[i])]]) { const f = make("span", `${name} `); f.append(make("b", value)); facts.append(f); }
    at.append(facts);
    const cols = make("div", undefined, "columns");
    if (d.promoted) cols.append(tokens("promotes", promoted(), up(), i, "up"), tokens("suppresses", suppressed(), down(), i, "down"));
    const right = make("div"), bars = make("div", undefined, "bars"), of = histogram().subarray(i * d.bins, (i + 1) * d.bins), most = Math.max(...of);
    of.forEach((count, k) => { const b = make("i"); b.style.height = `${100 * Math.log1p(count) / Math.log1p(most)}%`; b.title = `${count} from ${short(k * columns.max[i] / d.bins)}`; bars.append(b); });
    const scale = make("div", undefined, "scale"); scale.append(make("span", "0"), make("span", "activation (counts: log scale)"), make("span", short(columns.max[i])));
    right.append(make("h3", "how strongly"), bars, scale, make("h3", "nearest decoder directions"));
    const table = make("table");
    for (let k = 0; k < d.n_near; k++) { const j = place.get(near()[i * d.n_near + k]), r = table.insertRow(), a = make("a", near()[i * d.n_near + k]); a.href = `#latent=${near()[i * d.n_near + k]}`; r.insertCell().append(a); r.insertCell().textContent = short(cosines()[i * d.n_near + k]); r.insertCell().textContent = labels[j]; r.cells[2].style.textAlign = "left"; }
    right.append(table); cols.append(right); at.append(cols);
    if (showPictures) showPictures(i, at);
    if (!starts) return;
    at.append(make("h3", "where it is active"));
    const tabs = make("div", undefined, "tabs"), box = make("div"); box.id = "contexts";
    [["0", "most active"], ["4", "strong quarter"], ["3", "third"], ["2", "second"], ["1", "weak quarter"]].forEach(([kind, text]) => {
      const b = make("button", text); b.type = "button"; b.setAttribute("aria-pressed", kind === page);
      b.onclick = () => { page = kind; [...tabs.children].forEach(o => o.setAttribute("aria-pressed", o === b)); contexts(i, box); }; tabs.append(b);
    });
    at.append(tabs, box); contexts(i, box);
  }
  function follow() {
    const found = /^#latent=(\d+)$/.exec(location.hash); if (!found) return false;
    const i = place.get(+found[1]);
    if (i === undefined) { $("latent").replaceChildren(make("p", `Latent ${found[1]} is not on this page: it was not active in these rows, or there were too many to show.`, "note")); return true; }
    show(i);
    inView(order.indexOf(i)); shown();
    return true;
  }
  browsed({ list, shown, follow, go, order: () => order, chosen: () => chosen });
  list();
  if (follow()) $("features").scrollIntoView(); else if (n) show(order[0]);
}
if (data.features) features(data.features);
