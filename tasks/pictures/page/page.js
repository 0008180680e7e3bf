"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byName = new Map(data.points.map((point) => [point.name, point]));
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  document.body.classList.add("on");

  // Texts become text nodes and attributes only: no name is ever read as markup.
  function add(parent, tag, attributes = {}, text = null) {
    const node = parent instanceof SVGElement || tag === "svg"
      ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.append(node);
    return node;
  }

  const colour = (curve) => `var(--${curve.teacher ? "t" : "s"}${curve.colour % 6})`;

  const SHAPES = {
    o: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
    s: (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
    "^": (r) => `M0 ${-1.2 * r}L${1.1 * r} ${0.9 * r}H${-1.1 * r}Z`,
    v: (r) => `M0 ${1.2 * r}L${1.1 * r} ${-0.9 * r}H${-1.1 * r}Z`,
    "<": (r) => `M${-1.2 * r} 0L${0.9 * r} ${1.1 * r}V${-1.1 * r}Z`,
    ">": (r) => `M${1.2 * r} 0L${-0.9 * r} ${1.1 * r}V${-1.1 * r}Z`,
    D: (r) => `M0 ${-1.25 * r}L${1.25 * r} 0L0 ${1.25 * r}L${-1.25 * r} 0Z`,
    P: (r) => `M${-r / 2.4} ${-1.1 * r}H${r / 2.4}V${-r / 2.4}H${1.1 * r}V${r / 2.4}H${r / 2.4}V${1.1 * r}H${-r / 2.4}V${r / 2.4}H${-1.1 * r}V${-r / 2.4}H${-r / 2.4}Z`,
    X: (r) => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
    h: (r) => `M0 ${-1.15 * r}L${r} ${-0.6 * r}V${0.6 * r}L0 ${1.15 * r}L${-r} ${0.6 * r}V${-0.6 * r}Z`,
  };

  function mark(parent, curve, x, y, r, open) {
    return add(parent, "path", {
      d: SHAPES[curve.marker](r), transform: `translate(${x} ${y})`, stroke: colour(curve), "stroke-width": 1.8,
      fill: open ? "var(--paper)" : colour(curve),
    });
  }

  // ---- axes

  function ticksOf(low, high, kind) {
    const ticks = [];
    if (kind === "two") {
      for (let k = Math.ceil(Math.log2(low)); 2 ** k <= high; k++) ticks.push(2 ** k);
    } else if (kind === "log") {
      const decades = Math.log10(high / low);
      const parts = decades < 1.2 ? [1, 1.5, 2, 3, 4, 5, 7] : decades < 4 ? [1, 2, 5] : [1];
      for (let k = Math.floor(Math.log10(low)); 10 ** k <= high; k++)
        for (const part of parts) if (part * 10 ** k >= low && part * 10 ** k <= high) ticks.push(part * 10 ** k);
    } else {
      const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
      for (let k = Math.ceil(low / step); k * step <= high + step / 1e6; k++) ticks.push(k * step);
    }
    return ticks;
  }

  const plain = (value) => {
    if (value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)) return value.toExponential(0).replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  };

  function axisOf(values, kind, from, to) {
    let low, high;
    if (kind === "linear") {
      low = Math.min(...values); high = Math.max(...values);
      const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      low -= room; high += room;
    } else {
      const positive = values.filter((value) => value > 0);
      low = Math.min(...positive); high = Math.max(...positive);
      if (!positive.length) [low, high] = [0.1, 1];
      const room = Math.max((high / low) ** 0.05, 1.15);
      low /= room; high *= room;
    }
    const at = kind === "linear" ? (value) => value : Math.log;
    const place = (value) => from + (at(value) - at(low)) / (at(high) - at(low)) * (to - from);
    // what has no logarithm stands on the edge
    return { low, high, ticks: ticksOf(low, high, kind), at: (value) => (kind === "linear" || value > 0 ? place(Math.max(value, low)) : from) };
  }

  function frame(host, label, xLabel, yLabel, xAxis, yAxis, box) {
    const svg = add(host, "svg", { viewBox: `0 0 ${box.width} ${box.height}`, height: box.height });
    svg.setAttribute("aria-label", label);
    let last = -Infinity;
    for (const tick of xAxis.ticks) {
      const x = xAxis.at(tick);
      add(svg, "line", { class: "grid", x1: x, x2: x, y1: box.top, y2: box.bottom });
      const room = plain(tick).length * 4 + 6;
      if (x - room < last) continue;
      last = x + room;
      add(svg, "text", { x, y: box.bottom + 18, "text-anchor": "middle" }, plain(tick));
    }
    last = Infinity;
    for (const tick of yAxis.ticks) {
      const y = yAxis.at(tick);
      add(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y });
      if (last - y < 15) continue;
      last = y;
      add(svg, "text", { x: box.left - 8, y: y + 4, "text-anchor": "end" }, plain(tick));
    }
    add(svg, "text", { class: "axis", x: (box.left + box.right) / 2, y: box.bottom + 40, "text-anchor": "middle" }, xLabel);
    add(svg, "text", { class: "axis", x: 0, y: 14 }, yLabel);
    return svg;
  }

  function boxOf(host, most) {
    const width = Math.max(300, Math.floor(host.clientWidth));
    const height = Math.round(Math.min(most, Math.max(330, width * 0.62)));
    return { width, height, left: 52, right: width - 14, top: 26, bottom: height - 48 };
  }

  const path = (places) => places.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

  // ---- the frontier

  const state = { hidden: new Set(), metric: data.metrics[0].key, tries: false, focus: data.recommended, open: null };
  const host = $("chart");
  let places = [];

  const shownCurves = () => data.curves.filter((curve) => !state.hidden.has(curve.name));

  function namesOf(curve) {
    const names = state.tries ? [...curve.points, ...curve.tries] : curve.points;
    return names.filter((name) => byName.get(name).values[state.metric]);
  }

  function drawFrontier(focused = false) {
    const metric = data.metrics.find((each) => each.key === state.metric);
    const curves = shownCurves();
    const value = (name) => byName.get(name).values[metric.key];
    // axes stay where they are when curves are hidden
    const all = data.points.filter((point) => point.values[metric.key] && (state.tries || point.best));
    const ends = all.flatMap((point) => [point.values[metric.key][0], point.values[metric.key][0] + point.values[metric.key][1]]);
    const floor = data.floor[metric.key], bar = data.bar[metric.key];
    if (floor) ends.push(floor[0]);
    if (bar) ends.push(bar);
    host.replaceChildren();
    const box = boxOf(host, 560);
    const levels = [];
    if (box.width > 560 && (floor || bar)) box.right -= 108;
    const x = axisOf(all.map((point) => point.nfe), "two", box.left, box.right);
    const y = axisOf(ends, metric.kind, box.bottom, box.top);
    const way = metric.better ? ` (${metric.better} is better)` : "";
    const svg = frame(host, `${metric.label} against network calls`, "network calls for one image", metric.label + way, x, y, box);
    svg.setAttribute("role", "application");
    svg.setAttribute("aria-roledescription", "interactive chart");
    svg.setAttribute("tabindex", "0");
    drawFront(svg, metric, all, x, y, box);
    if (bar) {
      add(svg, "line", { class: "bar", x1: box.left, x2: box.right, y1: y.at(bar), y2: y.at(bar) });
      levels.push({ text: "near enough", y: y.at(bar) });
    }
    if (floor && (floor[0] > 0 || metric.kind === "linear")) {
      drawFloor(svg, floor, y, box);
      levels.push({ text: "a perfect sampler", y: y.at(floor[0]) });
    }
    drawLevels(svg, levels, box);
    places = [];
    for (const curve of curves) drawCurve(svg, curve, value, x, y, box);
    drawMarks(svg, value, x, y, box);
    state.halo = add(svg, "path", { class: "halo", d: SHAPES.o(11), visibility: "hidden" });
    state.tip = add(host, "div", { class: "tip", hidden: "" });
    listen(svg);
    if (focused) { svg.focus({ preventScroll: true }); }
  }

  function drawFront(svg, metric, all, x, y, box) {
    if (!metric.better || metric.key === "ms_per_image") return;
    const sign = metric.better === "lower" ? 1 : -1;
    const steps = [];
    let best = Infinity;
    for (const point of [...all].sort((one, other) => one.nfe - other.nfe)) {
      const here = sign * point.values[metric.key][0];
      if (here >= best) continue;
      if (steps.length) steps.push([x.at(point.nfe), steps[steps.length - 1][1]]);
      steps.push([x.at(point.nfe), y.at(sign * here)]);
      best = here;
    }
    if (!steps.length) return;
    steps.push([box.right, steps[steps.length - 1][1]]);
    add(svg, "path", { class: "front", d: path(steps) });
  }

  function drawFloor(svg, [value, se], y, box) {
    const top = y.at(value + se), bottom = Math.min(y.at(value - se), box.bottom);
    add(svg, "rect", { class: "band", x: box.left, width: box.right - box.left, y: top, height: Math.max(1, bottom - top) });
    add(svg, "line", { class: "level", x1: box.left, x2: box.right, y1: y.at(value), y2: y.at(value) });
  }

  // beside their lines; on a narrow page, where there is no room beside, above the one and below the other
  function drawLevels(svg, levels, box) {
    if (box.width - box.right > 100) {
      let last = -Infinity;
      for (const level of levels) {
        last = Math.max(level.y + 4, last + 14);
        add(svg, "text", { x: box.right + 6, y: last }, level.text);
      }
    } else {
      levels.forEach((level, k) => add(svg, "text", { x: box.right, y: level.y + (k ? 14 : -5), "text-anchor": "end" }, level.text));
    }
  }

  function drawCurve(svg, curve, value, x, y, box) {
    const names = namesOf(curve);
    const line = names.filter((name) => curve.points.includes(name)).map((name) => [x.at(byName.get(name).nfe), y.at(value(name)[0])]);
    const kind = curve.teacher ? "curve teacher" : "curve";
    add(svg, "path", { class: kind, d: path(line), stroke: colour(curve) });
    for (const name of names) {
      const [number, se] = value(name), px = x.at(byName.get(name).nfe), py = y.at(number);
      if (se) {
        const low = Math.min(y.at(number - se), box.bottom), high = y.at(number + se);
        add(svg, "path", { d: `M${px} ${low}V${high}M${px - 3} ${high}h6M${px - 3} ${low}h6`, stroke: colour(curve), "stroke-width": 1.2 });
      }
      mark(svg, curve, px, py, curve.points.includes(name) ? 5 : 3, curve.teacher);
      places.push({ name, x: px, y: py });
    }
  }

  function drawMarks(svg, value, x, y, box) {
    for (const place of places) {
      if (byName.get(place.name).lost && byName.get(place.name).best)
        add(svg, "text", { class: "lost", x: place.x, y: place.y - 8, "text-anchor": "middle" }, "~");
    }
    const chosen = byName.get(data.recommended);
    if (!value(chosen.name)) return;
    const px = x.at(chosen.nfe), py = y.at(value(chosen.name)[0]);
    add(svg, "path", { class: "ring", d: SHAPES.o(12), transform: `translate(${px} ${py})` });
    if (box.width <= 560) return;  // no room for words: the legend says what the ring is
    const label = add(svg, "text", { class: "named", y: py > box.bottom - 40 ? py - 22 : py + 28 }, `recommended: ${chosen.name}`);
    const long = label.getComputedTextLength();
    const x0 = px < (box.left + box.right) / 2 ? px + 16 : px - 16 - long;
    label.setAttribute("x", Math.max(box.left, Math.min(box.right - long, x0)));
  }

  function listen(svg) {
    const near = (event) => {
      const matrix = svg.getScreenCTM();
      const px = (event.clientX - matrix.e) / matrix.a, py = (event.clientY - matrix.f) / matrix.d;
      let best = null, least = 26 ** 2;
      for (const place of places) {
        const far = (place.x - px) ** 2 + (place.y - py) ** 2;
        if (far < least) [best, least] = [place, far];
      }
      return best;
    };
    svg.addEventListener("pointermove", (event) => show(near(event)));
    svg.addEventListener("pointerleave", () => show(null));
    svg.addEventListener("click", (event) => { const place = near(event); if (place) open(place.name); });
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(placeOf(state.focus) || places[0]); });
    svg.addEventListener("blur", () => show(null));
    svg.addEventListener("keydown", keys);
  }

  const placeOf = (name) => places.find((place) => place.name === name);

  function keys(event) {
    const order = [...places].sort((one, other) => one.x - other.x || other.y - one.y);
    const here = Math.max(0, order.findIndex((place) => place.name === state.focus));
    const to = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1, Home: 0, End: order.length - 1 }[event.key];
    if (to !== undefined && order.length) {
      const place = order[Math.min(order.length - 1, Math.max(0, to))];
      state.focus = place.name;
      show(place);
    } else if (event.key === "Enter" || event.key === " ") {
      open(state.focus);
    } else if (event.key === "Escape") {
      show(null);
    } else {
      return;
    }
    event.preventDefault();
  }

  function show(place) {
    state.tip.hidden = !place;
    state.halo.setAttribute("visibility", place ? "visible" : "hidden");
    if (!place) return;
    const point = byName.get(place.name);
    state.halo.setAttribute("transform", `translate(${place.x} ${place.y})`);
    state.tip.replaceChildren();
    add(state.tip, "b", {}, point.name);
    const table = add(state.tip, "table");
    const rows = [["calls", plain(point.nfe)]];
    for (const metric of data.metrics.slice(0, 5)) if (point.values[metric.key]) rows.push([metric.label, point.values[metric.key][2]]);
    if (!data.metrics.slice(0, 5).some((metric) => metric.key === state.metric) && point.values[state.metric])
      rows.push([data.metrics.find((metric) => metric.key === state.metric).label, point.values[state.metric][2]]);
    for (const [label, text] of rows) {
      const row = add(table, "tr");
      add(row, "td", {}, label);
      add(row, "td", {}, text);
    }
    host.querySelector("svg").setAttribute("aria-description", `${point.name}: ${rows.map((row) => row.join(" ")).join(", ")}`);
    const scale = host.clientWidth / Number(host.querySelector("svg").viewBox.baseVal.width);
    const left = place.x * scale, width = state.tip.offsetWidth;
    state.tip.style.left = `${Math.max(0, Math.min(host.clientWidth - width, left + (left > host.clientWidth / 2 ? -width - 16 : 16)))}px`;
    state.tip.style.top = `${Math.max(0, place.y * scale - state.tip.offsetHeight / 2)}px`;
  }

  // ---- one point, opened

  function open(name) {
    const point = byName.get(name);
    if (!point) return;
    state.open = state.focus = name;
    const panel = $("panel");
    panel.replaceChildren();
    panel.hidden = false;
    const head = add(panel, "header");
    add(head, "h3", {}, name + (name === data.recommended ? " (recommended)" : ""));
    const close = add(head, "button", { class: "close", type: "button" }, "Close");
    close.addEventListener("click", () => { panel.hidden = true; history.replaceState(null, "", "#frontier"); host.querySelector("svg").focus(); });
    if (point.lost) add(panel, "p", { class: "warnings" }, point.lost);
    const list = add(panel, "dl", { class: "facts" });
    const facts = [["network calls", plain(point.nfe)]];
    for (const metric of data.metrics) if (point.values[metric.key]) facts.push([metric.label, point.values[metric.key][2]]);
    for (const [label, text] of [...facts, ...point.facts]) {
      add(list, "dt", {}, label);
      const code = label === "recipe" || label === "trajectory";
      code ? add(add(list, "dd"), "code", {}, text) : add(list, "dd", {}, text);
    }
    for (const each of [name, data.recommended, "real"].filter((one, k, some) => some.indexOf(one) === k)) {
      const row = [...document.querySelectorAll("#samples .strip")].find((strip) => strip.dataset.name === each);
      if (!row) continue;
      const copy = row.cloneNode(true);
      copy.hidden = false;
      panel.append(copy);
    }
    history.replaceState(null, "", `#point=${encodeURIComponent(name)}`);
  }

  function fromAddress() {
    const name = /^#point=(.*)$/.exec(location.hash);
    if (!name) return;
    open(decodeURIComponent(name[1]));
    $("panel").scrollIntoView({ block: "nearest" });
  }

  // ---- legend, chooser

  function drawLegend() {
    const legend = $("legend");
    for (const curve of data.curves) {
      const button = add(legend, "button", { type: "button", "aria-pressed": "true" });
      const icon = add(button, "svg", { width: 30, height: 16, "aria-hidden": "true" });
      add(icon, "path", { d: "M0 8H30", stroke: colour(curve), "stroke-width": curve.teacher ? 1.4 : 2.4, "stroke-dasharray": curve.teacher ? "5 4" : "none" });
      mark(icon, curve, 15, 8, 5, curve.teacher);
      add(button, "span", {}, curve.name);
      button.addEventListener("click", () => {
        state.hidden.has(curve.name) ? state.hidden.delete(curve.name) : state.hidden.add(curve.name);
        button.setAttribute("aria-pressed", String(!state.hidden.has(curve.name)));
        drawFrontier();
      });
    }
    const key = add(legend, "div", { class: "key" });
    add(key, "span", {}, "ring: recommended; grey steps: the best within so many calls; bars: one standard error");
    if (data.points.some((point) => point.lost && point.best)) add(add(legend, "div", { class: "key" }), "span", {}, `~ ${data.losable} lost`);
  }

  $("metric").addEventListener("change", (event) => { state.metric = event.target.value; drawFrontier(); });
  $("tries").addEventListener("change", (event) => { state.tries = event.target.checked; drawFrontier(); });

  // ---- the table

  const table = $("points"), body = table.tBodies[0];

  function filterRows() {
    const word = $("find").value.trim().toLowerCase(), every = $("rows").checked;
    for (const row of body.rows)
      row.hidden = (!every && row.classList.contains("try")) || !row.cells[0].dataset.value.toLowerCase().includes(word);
  }

  function sortBy(column, head) {
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    const compare = (one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");  // what was not measured stays last
      const order = column === 0 ? a.localeCompare(b) : Number(a) - Number(b);
      return falling ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  }

  [...table.tHead.rows[0].cells].forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column, head)));
  for (const id of ["find", "rows"]) $(id).addEventListener("input", filterRows);
  $("columns").addEventListener("input", (event) => table.classList.toggle("everything", event.target.checked));
  body.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    open(link.closest("th").dataset.value);
    $("panel").scrollIntoView({ block: "nearest" });
  });

  // ---- samples

  function filterStrips() {
    const which = $("which").value, kinds = { front: ["front"], best: ["front", "best"], try: ["front", "best", "try"] }[which];
    for (const strip of document.querySelectorAll("#samples .strip")) strip.hidden = !kinds.includes(strip.dataset.kind);
  }

  $("which").addEventListener("change", filterStrips);

  // ---- trainings

  function drawTrainings() {
    drawLines($("losses"), data.trainings.map((each) => [each.name, each.loss.map(([images, loss]) => [images, loss, 0])]), "images seen", "loss");
    const looks = data.trainings.filter((each) => each.looks.length);
    if ($("looks")) $("looks").hidden = !looks.length;
    if (looks.length) drawLines($("looks"), looks.map((each) => [each.name, each.looks]), "updates", "Fréchet distance of samples (watched trainings)");
  }

  function drawLines(host, lines, xLabel, yLabel) {
    if (!host || !lines.length) return;
    host.replaceChildren();
    const box = boxOf(host, 420);
    const letters = box.width > 640 ? 16 : 8, wide = letters * 7 + 10;
    box.right -= wide;
    const x = axisOf(lines.flatMap(([, rows]) => rows.map((row) => row[0])), "log", box.left, box.right);
    const y = axisOf(lines.flatMap(([, rows]) => rows.map((row) => row[1])), "log", box.bottom, box.top);
    const svg = frame(host, `${yLabel} against ${xLabel}`, xLabel, yLabel, x, y, box);
    svg.setAttribute("role", "img");
    const labels = [];
    lines.forEach(([name, rows], k) => {
      const stroke = `var(--${k % 12 < 6 ? "s" : "t"}${k % 6})`;
      for (const [step, value, se] of rows)
        if (se) add(svg, "path", { d: `M${x.at(step)} ${Math.min(y.at(value - se), box.bottom)}V${y.at(value + se)}`, stroke, "stroke-width": 1.2 });
      const line = add(svg, "path", { class: "curve", d: path(rows.map(([step, value]) => [x.at(step), y.at(value)])), stroke });
      add(line, "title", {}, name);
      const [step, value] = rows[rows.length - 1];
      labels.push({ name, x: x.at(step), y: y.at(value), stroke });
    });
    sideLabels(svg, labels, box, letters);
  }

  // names at the right edge, pushed apart so that none covers another
  function sideLabels(svg, labels, box, letters) {
    labels.sort((one, other) => one.y - other.y);
    let last = box.top - 16;
    for (const label of labels) last = label.at = Math.max(label.y, last + 15);
    let next = box.bottom + 15;
    for (const label of [...labels].reverse()) next = label.at = Math.min(label.at, next - 15);
    for (const label of labels) {
      add(svg, "path", { d: `M${label.x} ${label.y}L${box.right + 10} ${label.at}`, stroke: label.stroke, "stroke-width": 0.8, fill: "none", opacity: 0.6 });
      add(svg, "text", { x: box.right + 14, y: label.at + 4, style: `fill:${label.stroke}` }, label.name.length > letters ? `${label.name.slice(0, letters - 1)}…` : label.name);
    }
  }

  drawLegend();
  filterRows();
  filterStrips();
  let width = 0;
  new ResizeObserver(() => {
    if (host.clientWidth === width) return;
    width = host.clientWidth;
    drawFrontier(document.activeElement === host.querySelector("svg"));
    drawTrainings();
  }).observe(host);
  drawFrontier();
  drawTrainings();
  fromAddress();
  addEventListener("hashchange", fromAddress);
})();
