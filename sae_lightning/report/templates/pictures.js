"use strict";
// Images that a latent is active on: the patch where it is most active is outlined, the others are shaded. `p`: what pictures.py tells.
function pictures(p) {
  const files = document.querySelectorAll("script.picture"), chunks = document.querySelectorAll("script.chunk"), decoded = new Map();
  const starts = array(p.starts), activeOn = array(p.active_on);
  let page = "0", heat = true;
  function chunk(i) {
    const k = Math.floor(i / p.per_chunk);
    if (!decoded.has(k)) {
      if (decoded.size > 8) decoded.clear();
      const [image, patch, value, kind, count, at, shade] = chunks[k].textContent.split(" ").map((text, j) => new KINDS[p.chunk[j]](bytes(text)));
      const ends = new Uint32Array(count.length + 1); count.forEach((n, e) => ends[e + 1] = ends[e] + n);
      decoded.set(k, { image, patch, value, kind, ends, at, shade, first: starts[k * p.per_chunk] });
    }
    return decoded.get(k);
  }
  function picture(c, e) {
    const figure = make("figure", undefined, "seen"), frame = make("div", undefined, "frame"), image = make("img"), title = p.titles[c.image[e]];
    image.src = "data:image/jpeg;base64," + files[c.image[e]].textContent; image.alt = title; figure.title = title; frame.append(image);
    const canvas = make("canvas"); canvas.width = p.columns; canvas.height = p.rows; canvas.hidden = !heat;
    const drawn = canvas.getContext("2d"), pixels = drawn.createImageData(p.columns, p.rows);
    for (let k = 0; k < p.rows * p.columns; k++) pixels.data.set([10, 14, 22, 165], 4 * k);
    for (let k = c.ends[e]; k < c.ends[e + 1]; k++) pixels.data[4 * c.at[k] + 3] = Math.round(165 * (1 - c.shade[k] / 255));
    drawn.putImageData(pixels, 0, 0); frame.append(canvas);
    if (c.patch[e] !== p.none) {
      const mark = make("i"), x = c.patch[e] % p.columns, y = Math.floor(c.patch[e] / p.columns);
      Object.assign(mark.style, { left: `${100 * x / p.columns}%`, top: `${100 * y / p.rows}%`, width: `${100 / p.columns}%`, height: `${100 / p.rows}%` }); frame.append(mark);
    }
    const about = make("figcaption"); about.append(make("b", short(c.value[e])), make("span", c.patch[e] === p.none ? "class token" : title)); figure.append(frame, about);
    return figure;
  }
  function fill(i, box) {
    const c = chunk(i); box.replaceChildren();
    for (let e = starts[i] - c.first; e < starts[i + 1] - c.first; e++) if (String(c.kind[e]) === page) box.append(picture(c, e));
    if (!box.children.length) box.append(make("p", "There are none.", "note"));
  }
  return (i, at) => {
    at.append(make("h3", `images that it is active on: ${activeOn[i]} of ${p.images}`));
    const tabs = make("div", undefined, "tabs"), box = make("div", undefined, "seens"), label = make("label", " shade by activation"), dim = make("input"); box.id = "contexts";
    [["0", "most active"], ["4", "strong quarter"], ["3", "third"], ["2", "second"], ["1", "weak quarter"]].forEach(([kind, text]) => {
      const b = make("button", text); b.type = "button"; b.setAttribute("aria-pressed", kind === page);
      b.onclick = () => { page = kind; tabs.querySelectorAll("button").forEach(o => o.setAttribute("aria-pressed", o === b)); fill(i, box); }; tabs.append(b);
    });
    dim.type = "checkbox"; dim.checked = heat; dim.onchange = () => { heat = dim.checked; box.querySelectorAll("canvas").forEach(c => c.hidden = !heat); };
    label.prepend(dim); tabs.append(label); at.append(tabs, box); fill(i, box);
  };
}
