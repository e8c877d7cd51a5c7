"use strict";
// Everything that comes from the data is written as text nodes or attributes, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);

function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  fill(node, options, children);
  return node;
}

function draw(tag, options = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  fill(node, options, children);
  return node;
}

function fill(node, options, children) {
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, item] of Object.entries(value)) node.style.setProperty(key, item);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(9)) if (child !== null && child !== undefined) node.append(child);
}

// --- numbers as text ------------------------------------------------------------------------------------------------

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size < 1e-4) return value.toExponential(1);
  return String(Number(value.toPrecision(digits + (size >= 100 ? 1 : 0))));
}

const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
const percent = (share) => (share > 0 && share < 0.01 ? "<1 %" : `${Math.round(share * 100)} %`);

function duration(seconds) {
  if (seconds < 60) return `${number(seconds, 2)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) {
    found.push(Math.abs(at) < step * 1e-6 ? 0 : Number(at.toPrecision(12)));
  }
  return found;
}

// --- line charts ----------------------------------------------------------------------------------------------------

const MARGIN = { left: 46, right: 10, top: 8, bottom: 34 };

/* A chart with a switch per series and the values under the pointer; arrow keys move the cursor as well.
   spec: title, xName, x (rising numbers), series ({name, colour, values with null for missing, off}), best (index into x),
   range ([low, high], optional), height. */
function chart(spec) {
  const legend = make("div", { class: "legend" });
  const svg = draw("svg", { role: "img", tabindex: 0 });
  const tip = make("div", { class: "tip", hidden: true });
  const host = make("div", { class: "chart" }, make("h3", {}, spec.title), legend, svg, tip);
  const shown = spec.series.map((series) => !series.off);
  let view = null;
  spec.series.forEach((series, index) => {
    const swatch = make("span", { class: "swatch", css: { background: series.colour } });
    const button = make("button", { type: "button", "aria-pressed": String(shown[index]), title: "show or hide" }, swatch, series.name);
    button.addEventListener("click", () => {
      shown[index] = !shown[index];
      button.setAttribute("aria-pressed", String(shown[index]));
      paint();
    });
    legend.append(button);
  });

  function paint() {
    const width = host.clientWidth || 340;
    const height = spec.height || 190;
    const active = spec.series.filter((_, index) => shown[index]);
    view = layout(spec, active, width, height);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-label", `${spec.title}: ${active.map(summary).join("; ") || "all curves are hidden"}`);
    paintAxes(svg, spec, view, width, height);
    for (const series of active) paintLine(svg, spec, series, view);
    hide();
  }

  function move(index) {
    if (!view.active.length) return;
    view.at = Math.max(0, Math.min(spec.x.length - 1, index));
    svg.querySelectorAll(".hover").forEach((node) => node.remove());
    const x = view.x(spec.x[view.at]);
    svg.append(draw("line", { class: "cursor hover", x1: x, x2: x, y1: view.top, y2: view.bottom }));
    tip.replaceChildren(make("div", { class: "quiet" }, `${spec.xName} ${number(spec.x[view.at])}`));
    for (const series of view.active) {
      const value = series.values[view.at];
      const swatch = make("span", { class: "swatch", css: { background: series.colour } });
      tip.append(make("div", {}, swatch, series.name, make("b", {}, number(value, 4))));
      if (value === null || value === undefined) continue;
      const dot = draw("circle", { class: "hover", cx: x, cy: view.y(value), r: 4 });
      dot.style.fill = series.colour;
      svg.append(dot);
    }
    tip.hidden = false;
    const left = x + 14 + tip.offsetWidth > host.clientWidth ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${svg.offsetTop + 8}px`;
  }

  function hide() {
    tip.hidden = true;
    svg.querySelectorAll(".hover").forEach((node) => node.remove());
  }

  function follow(event) {
    const box = svg.getBoundingClientRect();
    const wanted = view.value(((event.clientX - box.left) / box.width) * view.width);
    let nearest = 0;
    spec.x.forEach((value, index) => {
      if (Math.abs(value - wanted) < Math.abs(spec.x[nearest] - wanted)) nearest = index;
    });
    move(nearest);
  }

  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -spec.x.length, End: spec.x.length };
    if (event.key === "Escape") hide();
    if (!(event.key in steps)) return;
    event.preventDefault();
    move(tip.hidden ? (steps[event.key] > 0 ? 0 : spec.x.length - 1) : view.at + steps[event.key]);
  });
  new ResizeObserver(() => { if (host.clientWidth !== view?.width) paint(); }).observe(host);
  paint();
  return host;
}

function summary(series) {
  const values = series.values.filter((value) => value !== null);
  return values.length ? `${series.name} from ${number(values[0])} to ${number(values[values.length - 1])}` : `${series.name} has no values`;
}

function layout(spec, active, width, height) {
  const values = active.flatMap((series) => series.values).filter((value) => value !== null && value !== undefined);
  let [low, high] = spec.range || [Math.min(0, ...values), Math.max(...values)];
  if (!values.length) [low, high] = spec.range || [0, 1];
  if (high <= low) high = low + (Math.abs(low) || 1);
  if (!spec.range) high += (high - low) * 0.06;
  let [first, last] = [spec.x[0], spec.x[spec.x.length - 1]];
  if (first === last) [first, last] = [first - 1, last + 1];
  const top = MARGIN.top, bottom = height - MARGIN.bottom, inner = width - MARGIN.left - MARGIN.right;
  return {
    active, low, high, first, last, top, bottom, width, at: 0,
    x: (value) => MARGIN.left + ((value - first) / (last - first)) * inner,
    y: (value) => bottom - ((value - low) / (high - low)) * (bottom - top),
    value: (px) => first + ((px - MARGIN.left) / inner) * (last - first),
  };
}

function paintAxes(svg, spec, view, width, height) {
  for (const value of ticks(view.low, view.high, 4)) {
    const y = view.y(value);
    svg.append(draw("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
    svg.append(draw("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, number(value, 2)));
  }
  const whole = spec.x.every(Number.isInteger);
  for (const value of ticks(view.first, view.last, Math.max(2, Math.min(6, Math.floor(width / 70))))) {
    if ((whole && !Number.isInteger(value)) || value < spec.x[0] || value > spec.x[spec.x.length - 1]) continue;
    svg.append(draw("text", { x: view.x(value), y: height - 18, "text-anchor": "middle" }, number(value)));
  }
  svg.append(draw("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: view.bottom, y2: view.bottom }));
  svg.append(draw("text", { x: MARGIN.left + (width - MARGIN.left - MARGIN.right) / 2, y: height - 3, "text-anchor": "middle" }, spec.xName));
  if (spec.best !== undefined && spec.best !== null) {
    const x = view.x(spec.x[spec.best]);
    svg.append(draw("line", { class: "best", x1: x, x2: x, y1: view.top, y2: view.bottom }, draw("title", {}, "best epoch")));
  }
}

function paintLine(svg, spec, series, view) {
  let path = "", points = 0, previous = false;
  const marks = [];
  series.values.forEach((value, index) => {
    const there = value !== null && value !== undefined;
    if (there) {
      const x = view.x(spec.x[index]).toFixed(1), y = view.y(value).toFixed(1);
      path += `${previous ? "L" : "M"}${x} ${y}`;
      points += 1;
      marks.push([x, y]);
    }
    previous = there;
  });
  const line = draw("path", { class: "line", d: path, "data-points": points });
  line.style.stroke = series.colour;
  svg.append(line);
  if (points > 30) return;
  for (const [x, y] of marks) {
    const dot = draw("circle", { cx: x, cy: y, r: 2.6 });
    dot.style.fill = series.colour;
    svg.append(dot);
  }
}

// --- tables ---------------------------------------------------------------------------------------------------------

// CSS class of a column's cells: names are left-aligned, extra columns are hidden on phones.
const kindOf = (column) => (column.left ? "name" : column.extra ? "extra" : null);

/* columns: {name, value(row), show(row) (text or node), left, extra}; a click on a heading sorts, `fixed` rows stay on top. */
function table(columns, rows, { fixed = [], label = "" } = {}) {
  const body = make("tbody");
  const heads = columns.map((column) => make("th", { scope: "col", class: kindOf(column) }));
  let sorted = -1, up = true;
  columns.forEach((column, index) => {
    heads[index].append(make("button", { type: "button", title: "sort", onclick: () => sort(index) }, column.name));
  });

  function sort(index) {
    up = sorted === index ? !up : Boolean(columns[index].left);
    sorted = index;
    heads.forEach((head, number) => {
      if (number === index) head.setAttribute("aria-sort", up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const key = columns[index].value;
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : (a ?? -1) - (b ?? -1));
    paint([...rows].sort((a, b) => order(key(a), key(b)) * (up ? 1 : -1)));
  }

  function paint(list) {
    body.replaceChildren(...fixed.map((row) => line(row, "all")), ...list.map((row) => line(row, null)));
  }

  function line(row, kind) {
    const cells = columns.map((column) => make("td", { class: kindOf(column) }, column.show(row)));
    return make("tr", { class: kind }, cells);
  }

  paint(rows);
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    make("table", {}, make("thead", {}, make("tr", {}, heads)), body));
}

function pairs(rows) {
  return make("table", { class: "plain" }, make("tbody", {}, rows.map(([name, ...rest]) =>
    make("tr", {}, make("td", {}, name), make("td", { class: "text" }, rest)))));
}

function meter(value) {
  if (value === null || value === undefined) return "–";
  const inside = make("i", { css: { width: `${Math.round(value * 100)}%` } });
  return [score(value), make("span", { class: "meter", "aria-hidden": "true" }, inside)];
}
