// --- the parts of the page ------------------------------------------------------------------------------------------

const colour = (index) => `var(--s${index % 8})`;
const STATES = {
  finished: ["finished", "Finished"],
  running: ["running", "In progress"],
  stopped: ["stopped", "Stopped before its end"],
};

function section(id, title, explanation, ...children) {
  const about = explanation ? make("p", { class: "quiet" }, explanation) : null;
  return make("section", { id }, make("h2", {}, title), about, children);
}

function paintHeader() {
  const [kind, text] = STATES[data.state];
  const theme = make("button", { type: "button", title: "light or dark", onclick: switchTheme }, "◐ theme");
  const facts = [data.network.name, `${number(data.network.parameters)} parameters`, `data: ${data.data.name}`,
    `${data.image_px} px`, `batch ${data.batch_size}`, data.engine];
  document.getElementById("top").append(
    make("div", { class: "headline" }, make("h1", {}, data.name), make("span", { class: `pill ${kind}` }, text),
      make("span", { class: "grow" }), theme),
    make("p", { class: "quiet", css: { "margin-top": "6px" } }, facts.join(" · ")),
    make("div", { class: "tiles", id: "tiles" }, tiles()),
  );
}

function tile(value, name, about) {
  return make("div", { class: "tile" }, make("b", {}, value), make("span", { class: "name" }, name), " ", make("span", {}, about));
}

function tiles() {
  const found = data.validation, best = data.best;
  const progress = tile(`${data.done} / ${data.epochs}`, "epochs", data.state === "running" ? "done so far" : "done");
  const list = found
    ? [tile(score(found.means[3]), "mAP50-95", "strict: boxes must fit closely"), tile(score(found.means[2]), "mAP50", "boxes half right count"),
       tile(score(found.means[0]), "precision", "share of the finds that are right"), tile(score(found.means[1]), "recall", "share of the labels that are found")]
    : [];
  const time = total(data.times);
  if (best !== null) list.push(tile(`${data.results.epoch[best]}`, "best epoch", "counted from 0"));
  list.push(progress);
  if (time.images) list.push(tile(number(time.speed), "images / s", "training, without compiling"));
  if (time.all) list.push(tile(duration(time.all), "time", "training and validation"));
  return list;
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

const CURVES = [
  ["Box loss", [["train/box_loss", "training"], ["val/box_loss", "validation"]], null],
  ["Objectness loss", [["train/obj_loss", "training"], ["val/obj_loss", "validation"]], null],
  ["Class loss", [["train/cls_loss", "training"], ["val/cls_loss", "validation"]], null],
  ["Mean average precision", [["metrics/mAP_0.5", "mAP50"], ["metrics/mAP_0.5:0.95", "mAP50-95"]], null],
  ["Precision and recall", [["metrics/precision", "precision"], ["metrics/recall", "recall"]], [0, 1]],
  ["Learning rates", [["x/lr0", "biases"], ["x/lr1", "weights"], ["x/lr2", "normalisation"]], null],
];

function curves() {
  const results = data.results;
  if (!results.epoch.length) {
    return section("curves", "Curves", null, make("p", { class: "quiet" }, "No epoch is finished yet; open this page again later."));
  }
  const charts = CURVES.map(([title, lines, range]) => chart({
    title, range, xName: "epoch", x: results.epoch, best: data.best,
    series: lines.map(([key, name], index) => ({ name, colour: colour(index), values: results[key] })),
  }));
  const columns = Object.keys(results).map((key) => ({
    name: key, left: key === "epoch", value: (row) => results[key][row], show: (row) => number(results[key][row], 4),
  }));
  return section("curves", "Curves",
    "One point per epoch. Point at a curve, or use the arrow keys, for its values; click a name to hide its line. "
    + (data.best === null ? "" : "The dashed line marks the best epoch, whose weights were kept. ")
    + "Losses should fall; if the validation losses rise again while those of training fall, the network overfits.",
    make("div", { class: "charts" }, charts),
    make("details", {}, make("summary", {}, "All epochs as a table"),
      table(columns, results.epoch.map((_, row) => row), { label: "all epochs" })));
}

function classes() {
  const found = data.validation;
  if (!found) return null;
  const columns = [
    { name: "Class", left: true, value: (row) => row.name, show: (row) => row.name },
    { name: "Images", extra: true, value: (row) => row.images, show: (row) => number(row.images) },
    { name: "Labels", value: (row) => row.labels, show: (row) => number(row.labels) },
    { name: "Precision", value: (row) => row.precision, show: (row) => meter(row.precision) },
    { name: "Recall", value: (row) => row.recall, show: (row) => meter(row.recall) },
    { name: "mAP50", value: (row) => row.map50, show: (row) => meter(row.map50) },
    { name: "mAP50-95", value: (row) => row.map50_95, show: (row) => meter(row.map50_95) },
  ];
  const [precision, recall, map50, map50_95] = found.means;
  const all = { name: "all", images: found.images, labels: found.labels, precision, recall, map50, map50_95 };
  return section("classes", "Classes",
    `How well each class of the validation images is found by ${found.of}. Click a heading to sort.`,
    table(columns, found.table, { fixed: [all], label: "results per class" }),
    found.table.length ? null : make("p", { class: "note" }, "The validation images have no labels: nothing could be measured."),
    make("div", { class: "two" }, precisionRecall(found), confusion(found)));
}

function precisionRecall(found) {
  if (!found.curves.length) return null;
  // The colours that the classes have in pictures.
  const ofClass = (name) => data.data.classes.find((item) => item.name === name)?.colour ?? colour(7);
  const lines = found.curves.map((curve) => ({ name: curve.name, colour: ofClass(curve.name), values: curve.values, off: found.curves.length > 8 }));
  const mean = { name: "all classes", colour: "var(--ink)", values: found.mean_curve };
  return make("div", {}, chart({
    title: "Precision over recall, boxes half right (IoU 0.5)", xName: "recall", x: found.recall_axis, range: [0, 1.02], height: 300,
    series: found.curves.length > 1 ? [mean, ...lines] : [{ ...mean, name: found.curves[0].name }],
  }));
}

function confusion(found) {
  if (!found.confusion) return null;
  const names = [...data.data.classes.map((item) => item.name), "background"];
  const sums = names.map((_, column) => found.confusion.reduce((sum, row) => sum + row[column], 0));
  const last = names.length - 1;
  const head = make("tr", {}, make("th", {}, "predicted ↓  actual →"), names.map((name) => make("th", { scope: "col" }, name)));
  const rows = found.confusion.map((row, predicted) => make("tr", {}, make("th", { scope: "row" }, predicted === last ? "not found" : names[predicted]),
    row.map((count, truth) => {
      if (predicted === last && truth === last) return make("td");
      const share = sums[truth] ? count / sums[truth] : 0;
      const base = predicted === truth ? "var(--good)" : "var(--bad)";
      const cell = make("td", { title: `${percent(share)} of ${names[truth]}` }, number(count));
      cell.style.background = `color-mix(in srgb, ${base} ${Math.round(share * 55)}%, transparent)`;
      return cell;
    })));
  return make("div", {}, make("h3", {}, "Confusion matrix"),
    make("p", { class: "quiet", css: { "font-size": "13px" } }, "Counts at confidence 0.25; each column is one true class. Right finds lie on the diagonal."),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "confusion matrix" }, make("table", { class: "matrix" }, make("tbody", {}, head, rows))));
}

function samples() {
  const list = data.samples.filter((sample) => sample.picture);
  if (!list.length) {
    const why = data.noplots ? "The run was started with --noplots: no pictures are kept." : data.validation ? "None of the pictures could be read." : "They appear after the first validation.";
    return section("samples", "Sample predictions", null, make("p", { class: "quiet" }, why));
  }
  const value = make("output", { class: "mono" }, "0.25");
  const slider = make("input", { type: "range", min: 0.05, max: 0.95, step: 0.05, value: 0.25, id: "confidence" });
  slider.addEventListener("input", () => {
    value.textContent = Number(slider.value).toFixed(2);
    document.querySelectorAll("g[data-confidence]").forEach((box) => {
      box.style.display = Number(box.dataset.confidence) >= Number(slider.value) ? "" : "none";
    });
  });
  const figures = list.map((sample) => make("figure", { class: "sample" },
    make("div", { class: "pair" },
      make("div", {}, make("small", {}, "labels"), picture(sample, sample.labels, false)),
      make("div", {}, make("small", {}, "predictions"), picture(sample, sample.found, true))),
    make("figcaption", {}, sample.name)));
  const best = Math.max(0, ...list.flatMap((sample) => sample.found.map((box) => box[5])));
  const faint = best >= 0.25 ? null : make("p", { class: "note" },
    best ? `The network is not sure of anything yet: its best confidence here is ${best.toFixed(2)}. Move the slider to the left to see what it guesses.`
      : "The network has found nothing in these images yet.");
  return section("samples", "Sample predictions",
    `Validation images: left what the labels say, right what ${data.validation ? data.validation.of : "the network"} found.`,
    make("div", { class: "slider" }, make("label", { for: "confidence" }, "show predictions from confidence"), slider, value),
    faint, make("div", { class: "samples" }, figures));
}

function picture(sample, boxes, predicted) {
  const svg = draw("svg", { viewBox: `0 0 ${sample.width} ${sample.height}`, role: "img" });
  svg.setAttribute("aria-label", `${sample.name}: ${boxes.length} ${predicted ? "predictions" : "labels"}`);
  svg.append(draw("image", { href: sample.picture, width: sample.width, height: sample.height, preserveAspectRatio: "none" }));
  for (const box of [...boxes].reverse()) {
    const [kind, x1, y1, x2, y2, confidence] = box;
    const item = data.data.classes[kind] || { name: `class ${kind}`, colour: "#777777", text: "#ffffff" };
    const text = predicted ? `${item.name} ${confidence.toFixed(2)}` : item.name;
    const group = draw("g", {},
      draw("title", {}, text),
      draw("rect", { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1), fill: "none", stroke: item.colour }),
      draw("rect", { class: "tag", fill: item.colour, opacity: 0.88 }),
      draw("text", { class: "caption", fill: item.text, "data-x": x1, "data-y": y1 }, text));
    if (predicted) {
      group.dataset.confidence = confidence;
      group.style.display = confidence >= 0.25 ? "" : "none";
    }
    svg.append(group);
  }
  return svg;
}

/* Captions are 11 px high whatever the size of the picture, on a plate of their own width, and stay inside the picture. */
function fitCaptions() {
  for (const svg of document.querySelectorAll(".pair svg")) {
    const frame = svg.viewBox.baseVal, box = svg.getBoundingClientRect();
    const px = Math.max(frame.width / box.width, frame.height / box.height);
    for (const text of svg.querySelectorAll("text.caption")) {
      const plate = text.previousSibling, group = text.parentNode, display = group.style.display;
      group.style.display = "";
      text.setAttribute("font-size", 11 * px);
      const width = text.getComputedTextLength() + 6 * px, height = 14 * px;
      const left = Math.max(0, Math.min(Number(text.dataset.x), frame.width - width));
      const top = Math.max(0, Number(text.dataset.y) - height);
      group.style.display = display;
      for (const [name, value] of Object.entries({ x: left, y: top, width, height })) plate.setAttribute(name, value);
      text.setAttribute("x", left + 3 * px);
      text.setAttribute("y", top + 10.7 * px);
    }
  }
}

function total(times) {
  const sum = (key) => times.reduce((all, item) => all + item[key], 0);
  const parts = {
    images: sum("images"), training: sum("training"), waiting: sum("waiting"), compiling: sum("compiling"),
    computing: sum("computing") - sum("compiling"), validating: sum("validating"),
  };
  parts.host = Math.max(0, parts.training - parts.waiting - parts.computing - parts.compiling);
  parts.all = parts.training + parts.validating;
  parts.speed = parts.images / Math.max(parts.training - parts.compiling, 1e-9);
  return parts;
}

function speed() {
  if (!data.times.length) return null;
  const time = total(data.times);
  const parts = [["computing", "steps: forward, backward, update", colour(0)], ["waiting", "waiting for data", colour(1)],
    ["host", "everything else on the host", colour(7)], ["compiling", "compiling graphs", colour(3)], ["validating", "validation", colour(2)]];
  const bar = make("div", { class: "bar", role: "img", "aria-label": "shares of the time" }, parts.map(([key, name, shade]) =>
    make("i", { title: `${name}: ${duration(time[key])}`, css: { background: shade, width: `${(100 * time[key]) / time.all}%` } })));
  const keys = make("div", { class: "keys" }, parts.map(([key, name, shade]) =>
    make("span", {}, make("span", { class: "swatch", css: { background: shade } }), `${name}: ${percent(time[key] / time.all)} (${duration(time[key])})`)));
  const waits = time.waiting / Math.max(time.training - time.compiling, 1e-9);
  const advice = waits > data.data_bound_share
    ? make("p", { class: "note" }, `Without compiling and validation, ${percent(waits)} of the time went by waiting for images: --cache ram or more --workers would make it faster.`) : null;
  const rates = data.times.map((item) => item.images / Math.max(item.training - item.compiling, 1e-9));
  const perEpoch = data.times.length > 1 ? make("div", { class: "charts" },
    chart({ title: "Training speed, images per second", xName: "epoch", x: data.times.map((item) => item.epoch), series: [{ name: "images / s", colour: colour(0), values: rates }] }),
    chart({ title: "Seconds per epoch", xName: "epoch", x: data.times.map((item) => item.epoch), series: [
      { name: "training", colour: colour(0), values: data.times.map((item) => item.training) },
      { name: "validation", colour: colour(2), values: data.times.map((item) => item.validating) }] })) : null;
  const found = data.validation;
  const lines = [];
  if (found) lines.push(make("p", { class: "quiet" }, `Validation, per image: ${number(found.speed.load)} ms loading, ${number(found.speed.inference)} ms network, ${number(found.speed.suppression)} ms suppression.`));
  if (data.graphs) lines.push(make("p", { class: "quiet" }, data.graphs));
  return section("speed", "Speed", "Where the time went, over all epochs of this run.", bar, keys, advice, perEpoch, make("div", { css: { "margin-top": "14px" } }, lines));
}

function settings() {
  const changed = (rows) => make("table", { class: "plain" }, make("tbody", {}, rows.map(([name, value, usual]) => {
    const text = shown(value);
    const other = shown(usual) !== text;
    const hint = other ? make("span", { class: "usual" }, ` default ${shown(usual)}`) : null;
    return make("tr", { class: other ? "changed" : null }, make("td", {}, name), make("td", { class: "text mono" }, text, hint));
  })));
  return section("settings", "Settings", "Bold is what differs from the default.",
    make("div", { class: "two" },
      make("div", {}, make("h3", {}, "Flags (opt.yaml)"), make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "flags" }, changed(data.settings))),
      make("div", {}, make("h3", {}, "Hyper-parameters (hyp.yaml)"), make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "hyper-parameters" }, changed(data.hyperparameters)))));
}

function shown(value) {
  if (value === null || value === undefined) return "default";
  if (value === "") return "–";
  if (value === true) return "yes";
  if (value === false) return "no";
  return Array.isArray(value) ? value.join(" ") : String(value);
}

function images() {
  const rows = data.data.splits.map((split) => [split.name, `${number(split.images)} images, ${number(split.labels)} labels, ${number(split.background)} without labels`
    + (split.problems ? `; ${number(split.problems)} problems, see problems.txt` : "")]);
  const columns = [
    { name: "Class", left: true, value: (row) => row.name, show: (row) => row.name },
    { name: "Train labels", value: (row) => row.train, show: (row) => number(row.train) },
    { name: "Val labels", value: (row) => row.val, show: (row) => number(row.val) },
  ];
  return section("data", "Data", null, pairs([["data set", data.data.name], ...rows]), table(columns, data.data.classes, { label: "labels per class" }));
}

function environment() {
  return section("environment", "Environment", null, make("div", { class: "scroll" }, pairs(data.environment.map(([name, value]) => [name, value]))));
}

function next() {
  return section("next", "What next", null, data.commands.map(([about, command]) => [make("p", { css: { margin: "10px 0 0" } }, about), make("pre", {}, command)]));
}

paintHeader();
const parts = [curves(), classes(), samples(), speed(), data.data.splits.length ? images() : null, settings(), environment(), next()].filter(Boolean);
const links = parts.map((part) => make("a", { href: `#${part.id}` }, part.querySelector("h2").textContent));
document.getElementById("top").append(make("nav", { "aria-label": "parts of the page" }, links));
document.getElementById("main").append(...parts);
document.getElementById("foot").append(`Written by graph-train ${data.version} at ${data.written}${data.state === "running" ? "; it is written again while the run goes on" : ""}. This page is complete in itself: it can be sent or archived as one file.`);
fitCaptions();
addEventListener("resize", fitCaptions);
document.documentElement.dataset.ready = "yes";
