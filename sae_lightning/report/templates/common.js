"use strict";
const $ = id => document.getElementById(id), data = JSON.parse($("data").textContent);
const make = (name, text, kind) => { const e = document.createElement(name); if (text !== undefined) e.textContent = text; if (kind) e.className = kind; return e; };
const short = x => !Number.isFinite(x) ? "–" : x === 0 ? "0" : Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3 ? x.toExponential(1) : String(+x.toPrecision(3));

// -- light and dark ---------------------------------------------------------------------------------------------------
document.documentElement.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
$("theme").onclick = () => { document.documentElement.classList.toggle("dark"); draw(); };

// -- plots: the library is read when there is time for it -------------------------------------------------------------
let isRead = false;
function plot(id, traces, { x = {}, y = {}, ...more }) {
  if (!isRead) { const s = make("script"); s.textContent = $("plotly").textContent; document.head.append(s); isRead = true; }
  const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line") };
  Plotly.react(id, traces, { margin: { l: 52, r: 8, t: 6, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--text"), size: 11 },
    legend: { orientation: "h", font: { size: 10 }, y: -0.16, maxheight: 0.35 }, xaxis: { ...axis, ...x }, yaxis: { ...axis, ...y }, uirevision: id, ...more }, { displayModeBar: false, responsive: true });
}
const later = window.requestIdleCallback ? f => requestIdleCallback(f, { timeout: 400 }) : f => setTimeout(f, 50);
addEventListener("load", () => later(() => draw()));

// -- arrays: what is not looked at is not decoded ---------------------------------------------------------------------
const KINDS = { f4: Float32Array, i4: Int32Array, u4: Uint32Array, u2: Uint16Array, u1: Uint8Array };
function bytes(text) { const s = atob(text), made = new Uint8Array(s.length); for (let i = 0; i < s.length; i++) made[i] = s.charCodeAt(i); return made.buffer; }
const array = packed => new KINDS[packed[0]](bytes(packed[1]));
const lazy = packed => { let made; return () => made ??= array(packed); };

// -- tokens and their contexts ----------------------------------------------------------------------------------------
const seen = t => t.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ /, "·") || "∅";
/** A line: how active, then the tokens from `from` on, shaded; `d` says how many, and which number is no token. */
function context(d, c, at, largest, title) {
  const size = d.before + d.after + 1, from = at * size, line = make("div", undefined, "context"), p = make("p"), about = make("b", short(c.value[at]));
  if (title) about.title = title;
  for (let k = 0; k < size; k++) {
    const t = c.ids[from + k]; if (t === d.none) continue;
    const a = c.active[from + k] / 255, s = make("span", d.tokens[t].replace(/\n/g, "⏎")); if (a > 0) { s.style.background = `rgba(var(--hot), ${(0.12 + 0.75 * a).toFixed(2)})`; s.title = short(a * largest); }
    if (k === d.before) s.className = "peak"; p.append(s);
  }
  line.append(about, p);
  return line;
}

// -- a long list, of which the lines in view alone are made -----------------------------------------------------------
const HEIGHT = 26;
function lines(order, made) {
  const box = $("viewport"), first = Math.max(0, Math.floor(box.scrollTop / HEIGHT) - 6), last = Math.min(order.length, first + Math.ceil(box.clientHeight / HEIGHT) + 12);
  $("spacer").style.height = `${order.length * HEIGHT}px`; $("lines").style.top = `${first * HEIGHT}px`;
  $("lines").replaceChildren(...order.slice(first, last).map(made));
}
function inView(place) {
  const box = $("viewport");
  if (place >= 0 && (place * HEIGHT < box.scrollTop || (place + 1) * HEIGHT > box.scrollTop + box.clientHeight)) box.scrollTop = place * HEIGHT - box.clientHeight / 2;
}
/** Scrolled, searched, walked through by keys, and followed by address. `list` makes it anew, `shown` its lines in view, `go` chooses an entry. */
function browsed({ list, shown, follow, go, order, chosen }) {
  $("search").oninput = list;
  $("search").onkeydown = e => { if (e.key === "Enter" && order().length) go(order()[0]); if (e.key === "Escape") { $("search").value = ""; list(); $("search").blur(); } };
  $("viewport").addEventListener("scroll", shown, { passive: true });
  addEventListener("resize", shown);
  addEventListener("hashchange", follow);
  addEventListener("keydown", e => {
    if (isTyped(e)) return;
    const all = order(), step = { j: 1, k: -1 }[e.key], at = all.indexOf(chosen());
    if (step && all.length) { go(all[Math.min(all.length - 1, Math.max(0, at + step))]); e.preventDefault(); }
    if (e.key === "/") { $("search").focus(); e.preventDefault(); }
  });
}
/** Keys that a field or a modifier does not need itself. */
const isTyped = e => /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName) || e.ctrlKey || e.metaKey || e.altKey;
