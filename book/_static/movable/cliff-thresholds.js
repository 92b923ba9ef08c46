// The movable figure of theory/the-cliff.ipynb and of the front page: the threshold, the path that gradient descent takes,
// and the step that throws it out, before and after clipping.
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
    const run = { path: [[w, b]], norms: [], steps: [], clipped: 0, longest: 0, settled: 0 };
    for (let t = 0; t < STEPS; t++) {
      const [error, dw, db] = errorAndGradient(w, b);
      const norm = Math.hypot(dw, db);
      const scale = norm > maxNorm ? maxNorm / norm : 1;
      const [fromW, fromB] = [w, b];
      w = rounded(w - LEARNING_RATE * scale * dw);
      b = rounded(b - LEARNING_RATE * scale * db);
      run.path.push([w, b]);
      run.norms.push(norm);
      run.steps.push([-LEARNING_RATE * dw, -LEARNING_RATE * db]);
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

  // The step that a button plays: the longest of the run that is not clipped, and what the threshold leaves of it.
  const thrown = (free) => free.norms.indexOf(Math.max(...free.norms));

  function told(free, c) {
    const t = thrown(free), norm = free.norms[t];
    const cut = norm > c ? `clipped at ${nameOf(c)}, it is ${(LEARNING_RATE * c).toFixed(3)} long` : "no threshold cuts it";
    return `Step ${t}: the norm is ${norm.toFixed(1)}, so the step is ${(LEARNING_RATE * norm).toFixed(3)} long; ${cut}.`;
  }

  if (typeof document === "undefined") { // the tests read it without a browser
    module.exports = { STARTS, THRESHOLDS, descend, outcome, told };
    return;
  }

  // The figure -----------------------------------------------------------------------------------------------------

  const W = [4, 6.4], B = [-3.2, -1.6], LOG_NORM = [-3, 4], COLUMNS = 240, ROWS = 160;
  const CLIPPED = "#0067A3", UNCLIPPED = "#C24E00", INK = "#20242A"; // on the map, which is the same by day and by night
  // The error by colour: the valley is gold, the plain pale, the plateau grey.
  const COLOURS = [[0, 214, 152, 20], [0.35, 240, 195, 90], [0.62, 247, 232, 196], [0.77, 243, 240, 233], [0.9, 205, 202, 214], [1, 190, 187, 203]];

  function colour(height) {
    const at = Math.min(1, Math.max(0, (height + 4.5) / 4.5));
    const k = Math.max(1, COLOURS.findIndex(([stop]) => stop >= at));
    const [low, ...from] = COLOURS[k - 1], [high, ...to] = COLOURS[k];
    return from.map((value, i) => value + ((at - low) / (high - low)) * (to[i] - value));
  }

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
        pixels.data.set([...colour(Math.log10(errorAndGradient(w, b)[0])), 255], 4 * (j * COLUMNS + i));
      }
    }
    context.putImageData(pixels, 0, 0);
    return canvas.toDataURL();
  }

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

  const runs = new Map(); // 2000 steps take a while on a phone: each run once
  const run = (start, c) => {
    const key = `${start} ${c}`;
    if (!runs.has(key)) runs.set(key, descend(STARTS[start], c));
    return runs.get(key);
  };

  function draw({ c, start, step }, { width, name, svg, text, line }) {
    const free = run(start, Infinity), clipped = run(start, c);
    const withNorms = name === "cliff-thresholds";
    const left = 40, right = 8, top = 8, across = width - left - right;
    const mapHeight = Math.round(Math.min(withNorms ? 330 : 300, Math.max(210, 0.5 * width)));
    const normTop = mapHeight + 72, normHeight = 100;
    const height = withNorms ? normTop + normHeight + 42 : mapHeight + 46;
    const x = (w) => left + ((w - W[0]) / (W[1] - W[0])) * across;
    const y = (b) => top + ((B[1] - b) / (B[1] - B[0])) * mapHeight;
    const on = ([w, b]) => [x(w), y(b)];
    const onMap = { fill: INK, "paint-order": "stroke", stroke: "#F3F0E9", "stroke-width": 3, "stroke-opacity": 0.8 };

    // While the button plays: first the gradient's own step, then what the clip leaves of it.
    const t = thrown(free), playing = step !== null;
    const parting = c === Infinity ? 0 : Math.max(0, free.norms.findIndex((norm) => norm > c));
    const id = `${name}-map`, frame = { x: left, y: top, width: across, height: mapHeight };
    const map = [
      svg("image", { ...frame, href: (mapOfErrors ??= drawMap()), preserveAspectRatio: "none" }),
      // Until the threshold first acts both paths are one: ink, then each in its colour.
      line(free.path.slice(0, (playing ? t : parting) + 1).map(on), playing ? UNCLIPPED : INK, 2),
      ...(playing ? [] : [line(free.path.slice(parting).map(on), UNCLIPPED, 2.4)]),
      ...(playing || c === Infinity ? [] : [line(clipped.path.slice(parting).map(on), CLIPPED, 2)]),
    ];
    if (playing) {
      const from = free.path[t], whole = free.steps[t], cut = Math.min(1, c / free.norms[t]);
      const arrow = (share, stroke, wide, more) =>
        line([on(from), on(from.map((value, axis) => value + share * whole[axis]))], stroke, wide, more);
      // Lengths grow and shrink by factors: from 0.1 to 89 and back, most of the way lies outside the map.
      map.push(arrow(cut ** Math.max(0, 1 - 2 * step), UNCLIPPED, 4, step > 0.5 ? { "stroke-dasharray": "7 6", "stroke-width": 2.4 } : {}));
      if (step > 0.5) map.push(arrow(cut ** (2 * step - 1), CLIPPED, 5));
      map.push(svg("circle", { cx: x(from[0]), cy: y(from[1]), r: 5, fill: INK }));
    }
    const parts = [
      svg("defs", {}, [svg("clipPath", { id }, [svg("rect", frame)])]),
      svg("g", { "clip-path": `url(#${id})` }, map),
      svg("circle", { cx: x(STARTS[start][0]), cy: y(STARTS[start][1]), r: 5, fill: INK }),
      text("start", [x(STARTS[start][0]) + 9, y(STARTS[start][1]) - 8], "start", onMap),
      text("valley", [x(4.06), y(-1.93)], "start", { ...onMap, "font-weight": 650 }),
    ];
    const mark = (path, stroke) => {
      const out = exit(path), end = path[STEPS];
      if (out) {
        const [ex, ey] = on(out), side = ex + 130 < left + across ? 1 : -1;
        const baseline = Math.min(Math.max(ey + 5, top + 18), top + mapHeight - 8);
        parts.push(svg("circle", { cx: ex, cy: ey, r: 5, fill: stroke }));
        parts.push(text(`to ${point(end, 1)}`, [ex + 10 * side, baseline], side > 0 ? "start" : "end", { ...onMap, fill: stroke, "font-weight": 700 }));
      } else if (inside(end)) {
        parts.push(svg("circle", { cx: x(end[0]), cy: y(end[1]), r: 6, fill: "#fff", stroke, "stroke-width": 3 }));
      }
    };
    if (!playing) {
      mark(free.path, UNCLIPPED);
      if (c !== Infinity) mark(clipped.path, CLIPPED);
    }
    for (const w of [4, 4.5, 5, 5.5, 6]) parts.push(text(w.toFixed(1), [x(w), top + mapHeight + 18], w === 4 ? "start" : "middle"));
    for (const b of [-3, -2.5, -2]) parts.push(text(b.toFixed(1).replace("-", "−"), [left - 6, y(b) + 4], "end"));
    parts.push(text("weight w", [left + across / 2, top + mapHeight + 34], "middle"));
    parts.push(text("b", [2, top + mapHeight / 2 + 4]));

    if (withNorms) {
      const time = (k) => left + (k / STEPS) * across;
      const level = (norm) => normTop + ((LOG_NORM[1] - Math.log10(norm)) / (LOG_NORM[1] - LOG_NORM[0])) * normHeight;
      const overTime = (norms) => { // a norm of zero has no logarithm: the line ends there
        const end = norms.findIndex((norm) => norm < 10 ** LOG_NORM[0]);
        return norms.slice(0, end < 0 ? STEPS : end).map((norm, k) => [time(k), level(norm)]);
      };
      parts.push(text("norm before clipping", [left, normTop - 8]));
      for (const power of [-2, 0, 2]) {
        const at = level(10 ** power);
        parts.push(svg("line", { x1: left, x2: left + across, y1: at, y2: at, stroke: "var(--rule)" }));
        parts.push(text(String(10 ** power), [left - 6, at + 4], "end"));
      }
      parts.push(line(overTime(free.norms), "var(--unclipped)", 2.6));
      if (c !== Infinity) {
        parts.push(line(overTime(clipped.norms), "var(--clipped)", 1.3));
        const at = level(c);
        parts.push(svg("line", { x1: left, x2: left + across, y1: at, y2: at, stroke: "currentColor", "stroke-dasharray": "5 4" }));
        parts.push(text(`c = ${nameOf(c)}`, [left + across - 4, at - 5], "end"));
      }
      if (playing) parts.push(svg("circle", { cx: time(t), cy: level(free.norms[t]), r: 5, fill: "currentColor" }));
      for (const k of [0, 500, 1000, 1500, 2000]) parts.push(text(String(k), [time(k), normTop + normHeight + 17], k === STEPS ? "end" : "middle"));
      parts.push(text("step", [left + across / 2, normTop + normHeight + 34], "middle"));
    }
    const words = playing ? told(free, c) : outcome(clipped, c);
    return {
      height, parts, says: words,
      alt: "A map of the error over w and b: a grey plateau, a pale plain, a wall between them, and a golden valley at the "
        + `wall's foot. Vermilion: the path that is not clipped. Blue: clipped at ${nameOf(c)}. ${words}`,
    };
  }

  movable("cliff-thresholds", {
    controls: [
      { name: "c", label: "Threshold c", values: THRESHOLDS, value: 1, show: nameOf },
      { name: "step", label: "Play the step that goes wrong", seconds: 3 },
      { name: "start", label: "Start", options: STARTS.map((start, i) => [i, `(${start.join(", ")})`.replaceAll("-", "−")]), value: 0 },
    ],
    draw,
  });
})();
