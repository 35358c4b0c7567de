"use strict";
// The page can be read without this script; it adds values under the mouse, search, sorting, the lineage's highlights and the theme button.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const tip = document.getElementById("tip");

function showTip(event, fill) {
  tip.textContent = "";
  fill(tip);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(6, Math.min(event.clientX + 14, innerWidth - box.width - 6)) + "px";
  tip.style.top = (event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
}
const hideTip = () => { tip.hidden = true; };

document.addEventListener("mousemove", (event) => {
  const target = event.target.closest("[data-tip]");
  if (target) showTip(event, (box) => { box.textContent = target.dataset.tip; });
  else if (!event.target.closest("figure.chart svg")) hideTip();
});
document.addEventListener("scroll", hideTip, { passive: true });

function compact(value) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return +(value / size).toPrecision(4) + unit;
  return Math.abs(value) < 1e-3 && value ? value.toExponential(2) : String(+value.toPrecision(4));
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}

for (const figure of all("figure.chart")) {
  const source = figure.querySelector("script"), svg = figure.querySelector("svg");
  if (!source) continue;
  const data = JSON.parse(source.textContent), hidden = new Set();
  const [x0, x1, left, right] = data.x, [y0, y1, bottom, top] = data.y;
  const overlay = svg.appendChild(document.createElementNS(svg.namespaceURI, "g"));
  const toX = (x) => left + (x - x0) / (x1 - x0) * (right - left);
  const toY = (y) => bottom - ((data.log ? Math.log10(y) : y) - y0) / (y1 - y0) * (bottom - top);
  const draw = (name, attributes) => {
    const element = overlay.appendChild(document.createElementNS(svg.namespaceURI, name));
    for (const key in attributes) element.setAttribute(key, attributes[key]);
  };
  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = x0 + ((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width - left) / (right - left) * (x1 - x0);
    const slack = (x1 - x0) / 40;
    const found = data.lines.map((line, index) => ({ line, index, point: nearest(line.p, at) }))
      .filter((item) => !hidden.has(item.index) && Math.abs(item.point[0] - at) < slack && (!data.log || item.point[1] > 0));
    overlay.textContent = "";
    if (!found.length) { hideTip(); return; }
    const close = found.reduce((a, b) => Math.abs(a.point[0] - at) <= Math.abs(b.point[0] - at) ? a : b);
    draw("line", { class: "cross", x1: toX(close.point[0]), x2: toX(close.point[0]), y1: top, y2: bottom });
    for (const item of found) draw("circle", { class: "spot c" + item.line.c, cx: toX(item.point[0]), cy: toY(item.point[1]), r: 3.5 });
    showTip(event, (tipBox) => {
      tipBox.append(compact(close.point[0]) + " " + data.label);
      for (const item of found.slice(0, 14)) {
        const chip = document.createElement("i");
        chip.className = "c" + item.line.c;
        tipBox.append("\n", chip, item.line.name + "  " + compact(item.point[1]));
      }
    });
  });
  svg.addEventListener("mouseleave", () => { overlay.textContent = ""; hideTip(); });
  for (const key of all("button.key", figure)) key.addEventListener("click", () => {
    const index = +key.dataset.line, off = key.classList.toggle("off");
    if (off) hidden.add(index); else hidden.delete(index);
    svg.querySelector(`g[data-line="${index}"]`).style.display = off ? "none" : "";
  });
}

for (const box of all(".filter input")) {
  const rows = all("tbody tr", box.parentElement);
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

for (const head of all(".sortable th")) head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of all("th", table)) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => { const cell = row.cells[column]; return cell.dataset.v === undefined ? cell.textContent.trim() : +cell.dataset.v; };
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
  });
  body.append(...(down ? rows.reverse() : rows));
});

for (const svg of all("svg.lineage")) {
  const edges = all(".edge", svg), nodes = all(".node", svg);
  const follow = (id, from, to, seen) => {
    for (const edge of edges) if (edge.dataset[from] === id) {
      edge.classList.add("on");
      if (!seen.has(edge.dataset[to])) { seen.add(edge.dataset[to]); follow(edge.dataset[to], from, to, seen); }
    }
  };
  const clear = () => { svg.classList.remove("pointed"); for (const item of [...edges, ...nodes]) item.classList.remove("on"); };
  for (const node of nodes) for (const [enter, leave] of [["mouseenter", "mouseleave"], ["focus", "blur"]]) {
    node.addEventListener(enter, () => {
      clear();
      const up = new Set([node.dataset.id]), down = new Set([node.dataset.id]);
      follow(node.dataset.id, "to", "from", up);
      follow(node.dataset.id, "from", "to", down);
      svg.classList.add("pointed");
      for (const other of nodes) other.classList.toggle("on", up.has(other.dataset.id) || down.has(other.dataset.id));
    });
    node.addEventListener(leave, clear);
  }
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
let closed = [];
addEventListener("beforeprint", () => { closed = all("details:not([open], .sides, .doc)"); for (const item of closed) item.open = true; });
addEventListener("afterprint", () => { for (const item of closed) item.open = false; });
