// --- the parts of the page ------------------------------------------------------------------------------------------

const colour = (index) => `var(--s${index % 8})`;
const STATES = {
  finished: ["finished", "Finished"],
  running: ["running", "In progress"],
  stopped: ["stopped", "Stopped early"],
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
  const progress = tile(`${data.done} / ${data.epochs}`, "epochs", data.state === "running" ? "completed so far" : "completed");
  const list = found
    ? [tile(score(found.means[3]), "mAP50-95", "averaged over IoU 0.5 to 0.95"), tile(score(found.means[2]), "mAP50", "at IoU 0.5"),
       tile(score(found.means[0]), "precision", "fraction of detections that are correct"), tile(score(found.means[1]), "recall", "fraction of labels that are detected")]
    : [];
  const time = total(data.times);
  if (best !== null) list.push(tile(`${data.results.epoch[best]}`, "best epoch", "counted from 0"));
  list.push(progress);
  if (time.images) list.push(tile(number(time.speed), "images / s", "training, without compilation"));
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
    return section("curves", "Curves", null, make("p", { class: "quiet" }, "No epoch has finished yet; reload this page later."));
  }
  const charts = CURVES.map(([title, lines, range]) => chart({
    title, range, xName: "epoch", x: results.epoch, best: data.best,
    series: lines.map(([key, name], index) => ({ name, colour: colour(index), values: results[key] })),
  }));
  const columns = Object.keys(results).map((key) => ({
    name: key, left: key === "epoch", value: (row) => results[key][row], show: (row) => number(results[key][row], 4),
  }));
  return section("curves", "Curves",
    "One point per epoch. Hover over a chart or use the arrow keys to see its values; click a name to hide its curve. "
    + (data.best === null ? "" : "The dashed line marks the best epoch, whose weights were kept. ")
    + "Losses should fall; if the validation losses rise again while the training losses fall, the network overfits.",
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
    `Metrics of each class on the validation images, with ${found.of}. Click a heading to sort.`,
    table(columns, found.table, { fixed: [all], label: "results per class" }),
    found.table.length ? null : make("p", { class: "note" }, "The validation images have no labels, so there are no metrics."),
    make("div", { class: "two" }, precisionRecall(found), confusion(found)));
}

function precisionRecall(found) {
  if (!found.curves.length) return null;
  // The colours of the classes in pictures.
  const ofClass = (name) => data.data.classes.find((item) => item.name === name)?.colour ?? colour(7);
  const lines = found.curves.map((curve) => ({ name: curve.name, colour: ofClass(curve.name), values: curve.values, off: found.curves.length > 8 }));
  const mean = { name: "all classes", colour: "var(--ink)", values: found.mean_curve };
  return make("div", {}, chart({
    title: "Precision-recall curve at IoU 0.5", xName: "recall", x: found.recall_axis, range: [0, 1.02], height: 300,
    series: found.curves.length > 1 ? [mean, ...lines] : [{ ...mean, name: found.curves[0].name }],
  }));
}

function confusion(found) {
  if (!found.confusion) return null;
  const names = [...data.data.classes.map((item) => item.name), "background"];
  const sums = names.map((_, column) => found.confusion.reduce((sum, row) => sum + row[column], 0));
  const last = names.length - 1;
  const head = make("tr", {}, make("th", {}, "predicted ↓  actual →"), names.map((name) => make("th", { scope: "col" }, name)));
  const rows = found.confusion.map((row, predicted) => make("tr", {}, make("th", { scope: "row" }, predicted === last ? "missed" : names[predicted]),
    row.map((count, truth) => {
      if (predicted === last && truth === last) return make("td");
      const share = sums[truth] ? count / sums[truth] : 0;
      const base = predicted === truth ? "var(--good)" : "var(--bad)";
      const cell = make("td", { title: `${percent(share)} of ${names[truth]}` }, number(count));
      cell.style.background = `color-mix(in srgb, ${base} ${Math.round(share * 55)}%, transparent)`;
      return cell;
    })));
  return make("div", {}, make("h3", {}, "Confusion matrix"),
    make("p", { class: "quiet", css: { "font-size": "13px" } }, "Counts at confidence 0.25; each column is a true class. Correct detections are on the diagonal."),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "confusion matrix" }, make("table", { class: "matrix" }, make("tbody", {}, head, rows))));
}

function samples() {
  const list = data.samples.filter((sample) => sample.picture);
  if (!list.length) {
    const why = data.noplots ? "Disabled by --noplots." : data.validation ? "The images could not be read." : "They appear after the first validation.";
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
    best ? `No confident predictions yet: the highest confidence is ${best.toFixed(2)}. Move the slider to the left to show predictions of lower confidence.`
      : "There are no predictions for these images yet.");
  return section("samples", "Sample predictions",
    `Validation images with their labels (left) and with the predictions of ${data.validation ? data.validation.of : "the network"} (right).`,
    make("div", { class: "slider" }, make("label", { for: "confidence" }, "minimum confidence"), slider, value),
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

/* Captions are 11 px high at any size of the picture, have a background of their own width, and stay inside the picture. */
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
    ["host", "other work on the host", colour(7)], ["compiling", "compiling graphs", colour(3)], ["validating", "validation", colour(2)]];
  const bar = make("div", { class: "bar", role: "img", "aria-label": "time by activity" }, parts.map(([key, name, shade]) =>
    make("i", { title: `${name}: ${duration(time[key])}`, css: { background: shade, width: `${(100 * time[key]) / time.all}%` } })));
  const keys = make("div", { class: "keys" }, parts.map(([key, name, shade]) =>
    make("span", {}, make("span", { class: "swatch", css: { background: shade } }), `${name}: ${percent(time[key] / time.all)} (${duration(time[key])})`)));
  const waits = time.waiting / Math.max(time.training - time.compiling, 1e-9);
  const advice = waits > data.data_bound_share
    ? make("p", { class: "note" }, `${percent(waits)} of the training time, without compilation, was spent waiting for data: use --cache ram or more --workers.`) : null;
  const rates = data.times.map((item) => item.images / Math.max(item.training - item.compiling, 1e-9));
  const perEpoch = data.times.length > 1 ? make("div", { class: "charts" },
    chart({ title: "Training speed, images per second", xName: "epoch", x: data.times.map((item) => item.epoch), series: [{ name: "images / s", colour: colour(0), values: rates }] }),
    chart({ title: "Seconds per epoch", xName: "epoch", x: data.times.map((item) => item.epoch), series: [
      { name: "training", colour: colour(0), values: data.times.map((item) => item.training) },
      { name: "validation", colour: colour(2), values: data.times.map((item) => item.validating) }] })) : null;
  const found = data.validation;
  const lines = [];
  if (found) lines.push(make("p", { class: "quiet" }, `Validation, per image: ${number(found.speed.load)} ms loading, ${number(found.speed.inference)} ms inference, ${number(found.speed.suppression)} ms NMS.`));
  if (data.graphs) lines.push(make("p", { class: "quiet" }, data.graphs));
  return section("speed", "Speed", "Time by activity over all epochs of this run.", bar, keys, advice, perEpoch, make("div", { css: { "margin-top": "14px" } }, lines));
}

function settings() {
  const changed = (rows) => make("table", { class: "plain" }, make("tbody", {}, rows.map(([name, value, usual]) => {
    const text = shown(value);
    const other = shown(usual) !== text;
    const hint = other ? make("span", { class: "usual" }, ` default ${shown(usual)}`) : null;
    return make("tr", { class: other ? "changed" : null }, make("td", {}, name), make("td", { class: "text mono" }, text, hint));
  })));
  return section("settings", "Settings", "Values in bold differ from the default.",
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
  return section("next", "Next steps", null, data.commands.map(([about, command]) => [make("p", { css: { margin: "10px 0 0" } }, about), make("pre", {}, command)]));
}

paintHeader();
const parts = [curves(), classes(), samples(), speed(), data.data.splits.length ? images() : null, settings(), environment(), next()].filter(Boolean);
const links = parts.map((part) => make("a", { href: `#${part.id}` }, part.querySelector("h2").textContent));
document.getElementById("top").append(make("nav", { "aria-label": "parts of the page" }, links));
document.getElementById("main").append(...parts);
document.getElementById("foot").append(`Written by graph-train ${data.version} at ${data.written}${data.state === "running" ? "; updated during the run" : ""}. The page is self-contained and can be sent or archived as a single file.`);
fitCaptions();
addEventListener("resize", fitCaptions);
document.documentElement.dataset.ready = "yes";
