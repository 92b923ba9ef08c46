// The movable figure of theory/the-cliff.ipynb: a slider for the threshold, and the path that gradient descent takes.
// The page's cell puts this text into its own output, so that the figure needs no file and no host beside it.
(() => {
  "use strict";

  // The model, as the page's Python has it -------------------------------------------------------------------------

  const STEPS = 2000, LEARNING_RATE = 0.1, UPDATES = 50;
  const STARTS = [[6, -2.5], [5, -2], [5.01, -1.995]];
  // 0.01, 0.013, … 790 by tenths of a decade, then none
  const THRESHOLDS = Array.from({ length: 50 }, (_, i) => Number((10 ** (i / 10 - 2)).toPrecision(2)));
  THRESHOLDS.push(Infinity);

  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  // Eight decimals: without them the last bit of this browser's exponential would decide where a path ends.
  const rounded = (x) => Math.round(x * 1e8) / 1e8;

  function errorAndGradient(w, b) {
    let x = 0.5, dw = 0, db = 0;
    for (let t = 0; t < UPDATES; t++) {
      const s = sigmoid(x), slope = w * (s * (1 - s));
      x = w * s + b;
      dw = s + slope * dw;
      db = 1 + slope * db;
    }
    const s = sigmoid(x), chain = 2 * (s - 0.7) * s * (1 - s);
    return [(s - 0.7) ** 2, chain * dw, chain * db];
  }

  function descend([w, b], maxNorm) {
    const run = { path: [[w, b]], norms: [], clipped: 0, longest: 0, settled: 0 };
    for (let t = 0; t < STEPS; t++) {
      const [error, dw, db] = errorAndGradient(w, b);
      const norm = Math.hypot(dw, db);
      const scale = norm > maxNorm ? maxNorm / norm : 1;
      const [fromW, fromB] = [w, b];
      w = rounded(w - LEARNING_RATE * scale * dw);
      b = rounded(b - LEARNING_RATE * scale * db);
      run.path.push([w, b]);
      run.norms.push(norm);
      run.clipped += norm > maxNorm;
      run.longest = Math.max(run.longest, Math.hypot(w - fromW, b - fromB));
      if (error >= 1e-3) run.settled = t + 1;
    }
    return run;
  }

  const nameOf = (c) => (c === Infinity ? "none" : String(c));
  const point = ([w, b], digits) => `(${w.toFixed(digits)}, ${b.toFixed(digits)})`.replaceAll("-", "−");

  function outcome(run, c) {
    const [w, b] = run.path[STEPS];
    // On the wall the error can be low for a step or two: only a run that has stayed in the valley is in it.
    const end = run.settled <= STEPS - 100
      ? `In the valley from step ${run.settled}.`
      : `Not in the valley: after ${STEPS} steps at ${point([w, b], Math.abs(w) > 10 ? 1 : 2)}.`;
    const clipped = c === Infinity ? "No threshold." : `${run.clipped} of ${STEPS} steps clipped.`;
    return `${clipped} Longest step ${run.longest.toFixed(3)}. ${end}`;
  }

  if (typeof document === "undefined") { // the tests read it without a browser
    module.exports = { STARTS, THRESHOLDS, descend, outcome };
    return;
  }

  // The figure -----------------------------------------------------------------------------------------------------

  const W = [4, 6.4], B = [-3.2, -1.6], LOG_NORM = [-3, 4], COLUMNS = 240, ROWS = 160;
  const BLUE = "#0072B2", VERMILION = "#D55E00";

  const STYLE = `
    .cliff-move { margin: 1.5rem 0; }
    .cliff-move .cliff-row { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: center; margin: 0 0 .6rem;
      padding: 0; border: 0; min-width: 0; }
    .cliff-move legend { float: left; padding: 0; margin: 0; width: auto; font-size: inherit; }
    .cliff-move label { margin: 0; display: inline-flex; align-items: center; gap: .4rem; }
    .cliff-move input[type=range] { flex: 1 1 14rem; min-width: 0; height: 1.8rem; margin: 0; accent-color: ${BLUE};
      cursor: pointer; }
    .cliff-move output { display: inline-block; min-width: 3.2em; font-weight: 700; font-variant-numeric: tabular-nums; }
    .cliff-move svg { display: block; width: 100%; background: #fff; color: #222; }
    .cliff-move svg text { font: 13px/1.2 system-ui, sans-serif; fill: currentColor; }
    .cliff-move .outcome { margin: .6rem 0 0; min-height: 3em; font-variant-numeric: tabular-nums; }
    html[data-theme="dark"] .cliff-move svg { filter: brightness(0.88); }
    /* The theme puts such output on a light card. */
    html[data-theme="dark"] .bd-content div.cell_output .text_html:has(div.cliff-move div.cliff-row) {
      background: none; color: inherit; padding: 0; }`;

  let mapOfErrors; // drawn once for all figures and sizes

  function drawMap() {
    const canvas = document.createElement("canvas");
    canvas.width = COLUMNS;
    canvas.height = ROWS;
    const context = canvas.getContext("2d"), pixels = context.createImageData(COLUMNS, ROWS);
    for (let j = 0; j < ROWS; j++) {
      for (let i = 0; i < COLUMNS; i++) {
        const w = W[0] + ((i + 0.5) / COLUMNS) * (W[1] - W[0]);
        const b = B[1] - ((j + 0.5) / ROWS) * (B[1] - B[0]);
        const height = Math.log10(errorAndGradient(w, b)[0]);
        const grey = 85 + 165 * Math.min(1, Math.max(0, (height + 4.5) / 4.5));
        pixels.data.set([grey, grey, grey, 255], 4 * (j * COLUMNS + i));
      }
    }
    context.putImageData(pixels, 0, 0);
    return canvas.toDataURL();
  }

  const svg = (tag, attributes = {}, children = []) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  const inside = ([w, b]) => w >= W[0] && w <= W[1] && b >= B[0] && b <= B[1];

  // Where the path leaves the map for the last time: the point on its edge.
  function exit(path) {
    if (inside(path[path.length - 1])) return null;
    let k = path.length - 1;
    while (k > 0 && !inside(path[k - 1])) k--;
    if (k === 0) return null;
    const [from, to] = [path[k - 1], path[k]];
    let share = 1;
    for (const [axis, [low, high]] of [[0, W], [1, B]]) {
      const edge = to[axis] > high ? high : to[axis] < low ? low : null;
      if (edge !== null) share = Math.min(share, (edge - from[axis]) / (to[axis] - from[axis]));
    }
    return from.map((value, axis) => value + share * (to[axis] - value));
  }

  function draw(width, number, free, run, c) {
    const left = 46, right = 12, mapHeight = Math.round(Math.min(380, Math.max(230, 0.58 * width)));
    const normTop = mapHeight + 74, normHeight = 120, height = normTop + normHeight + 46;
    const across = width - left - right, top = 10;
    const x = (w) => left + ((w - W[0]) / (W[1] - W[0])) * across;
    const y = (b) => top + ((B[1] - b) / (B[1] - B[0])) * mapHeight;
    const step = (t) => left + (t / STEPS) * across;
    const level = (norm) =>
      normTop + ((LOG_NORM[1] - Math.log10(norm)) / (LOG_NORM[1] - LOG_NORM[0])) * normHeight;
    const line = (points, colour, strokeWidth) =>
      svg("polyline", { points, fill: "none", stroke: colour, "stroke-width": strokeWidth, "stroke-linejoin": "round" });
    const onMap = (path) => path.map(([w, b]) => `${x(w).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
    const overTime = (norms) => { // a norm of zero has no logarithm: the line ends there
      const end = norms.findIndex((norm) => norm < 10 ** LOG_NORM[0]);
      return norms.slice(0, end < 0 ? STEPS : end).map((n, t) => `${step(t).toFixed(1)},${level(n).toFixed(1)}`).join(" ");
    };
    const text = (content, at, anchor = "start", more = {}) =>
      svg("text", { x: at[0], y: at[1], "text-anchor": anchor, ...more }, [content]);

    const clip = `cliff-move-${number}`;
    const frame = { x: left, y: top, width: across, height: mapHeight };
    const map = svg("g", { "clip-path": `url(#${clip})` }, [
      svg("image", { ...frame, href: (mapOfErrors ??= drawMap()), preserveAspectRatio: "none" }),
      line(onMap(free.path), VERMILION, 4),
      ...(c === Infinity ? [] : [line(onMap(run.path), BLUE, 1.8)]),
    ]);
    const parts = [
      svg("defs", {}, [svg("clipPath", { id: clip }, [svg("rect", frame)])]),
      map,
      svg("circle", { cx: x(run.path[0][0]), cy: y(run.path[0][1]), r: 5 }),
      text("start", [x(run.path[0][0]) + 9, y(run.path[0][1]) - 7]),
    ];
    const end = run.path[STEPS], out = exit(run.path), colour = c === Infinity ? VERMILION : BLUE;
    if (out) {
      const [ex, ey] = [x(out[0]), y(out[1])];
      const side = ex + 130 < left + across ? 1 : -1; // where there is room for the words
      const baseline = Math.min(Math.max(ey + 5, top + 18), top + mapHeight - 8);
      parts.push(svg("circle", { cx: ex, cy: ey, r: 5, fill: colour }));
      parts.push(text(`to ${point(end, 1)}`, [ex + 10 * side, baseline], side > 0 ? "start" : "end", { "font-weight": 700 }));
    } else if (inside(end)) {
      parts.push(svg("circle", { cx: x(end[0]), cy: y(end[1]), r: 6, fill: "#fff", stroke: colour, "stroke-width": 3 }));
    }
    for (const w of [4, 4.5, 5, 5.5, 6]) parts.push(text(w.toFixed(1), [x(w), top + mapHeight + 18], "middle"));
    for (const b of [-3, -2.5, -2]) parts.push(text(b.toFixed(1).replace("-", "−"), [left - 6, y(b) + 4], "end"));
    parts.push(text("w", [left + across / 2, top + mapHeight + 36], "middle"));
    parts.push(text("b", [8, top + mapHeight / 2]));

    parts.push(text("norm before clipping", [left, normTop - 8]));
    for (const power of [-2, 0, 2]) {
      const at = level(10 ** power);
      parts.push(svg("line", { x1: left, x2: left + across, y1: at, y2: at, stroke: "#e3e3e3" }));
      parts.push(text(String(10 ** power), [left - 6, at + 4], "end"));
    }
    parts.push(line(overTime(free.norms), VERMILION, 3.6));
    if (c !== Infinity) {
      parts.push(line(overTime(run.norms), BLUE, 1.4));
      const at = level(c);
      parts.push(svg("line", { x1: left, x2: left + across, y1: at, y2: at, stroke: "#000", "stroke-dasharray": "5 4" }));
      parts.push(text(`c = ${nameOf(c)}`, [left + across - 4, at - 5], "end"));
    }
    for (const t of [0, 500, 1000, 1500, 2000]) {
      parts.push(text(String(t), [step(t), normTop + normHeight + 18], t === STEPS ? "end" : "middle"));
    }
    parts.push(text("step", [left + across / 2, normTop + normHeight + 36], "middle"));
    return svg("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": "Above: the plane of w and b, dark where the error is low, with the path for this threshold in blue "
        + "and the path that is not clipped in vermilion. Below: the norm of the gradient at each step of both.",
    }, parts);
  }

  const html = (tag, properties = {}, children = []) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  function build(place, number) {
    const id = `cliff-threshold-${number}`;
    const slider = html("input", { type: "range", id, min: 0, max: THRESHOLDS.length - 1, step: 1, value: 20 });
    const shown = html("output", { htmlFor: id });
    const told = html("p", { className: "outcome" });
    told.setAttribute("role", "status");
    told.setAttribute("aria-live", "polite");
    const card = html("div");
    const radios = STARTS.map((start, i) => html("input", {
      type: "radio", name: `cliff-start-${number}`, value: i, defaultChecked: i === 0,
    }));
    const starts = html("fieldset", { className: "cliff-row" }, [
      html("legend", { textContent: "Start (w, b):" }),
      ...radios.map((radio, i) => html("label", {}, [radio, `(${STARTS[i].join(", ")})`.replaceAll("-", "−")])),
    ]);
    const label = html("label", { htmlFor: id }, ["Threshold c:"]);
    place.replaceChildren(
      html("style", { textContent: STYLE }), starts, html("div", { className: "cliff-row" }, [label, shown, slider]), card, told);

    let start, free, width;
    const update = () => {
      const chosen = STARTS[radios.findIndex((radio) => radio.checked)];
      if (chosen !== start) free = descend((start = chosen), Infinity);
      const c = THRESHOLDS[slider.value], run = c === Infinity ? free : descend(start, c);
      shown.value = nameOf(c);
      slider.setAttribute("aria-valuetext", nameOf(c));
      told.textContent = outcome(run, c);
      width = Math.max(260, Math.round(place.clientWidth || 680));
      card.replaceChildren(draw(width, number, free, run, c));
    };
    slider.addEventListener("input", update);
    starts.addEventListener("change", update);
    new ResizeObserver(() => { if (Math.abs(place.clientWidth - width) > 1 && place.clientWidth) update(); }).observe(place);
    update();
  }

  // Jupyter may show the output twice: build each place once.
  for (const place of document.querySelectorAll(".cliff-move:not([data-built])")) {
    place.dataset.built = "";
    build(place, document.querySelectorAll(".cliff-move[data-built]").length);
  }
})();
