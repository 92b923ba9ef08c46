// The movable figure of theory/why-clipping-works.ipynb: one clipped step on cosh x, and the run that it makes from x = 10,
// for each learning rate and threshold.
(() => {
  "use strict";

  const START = 10, GOAL = 1e-3, MOST = 2000, NEWTON = 12;
  const RATES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 1.9, 2.1];
  const THRESHOLDS = [0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, Infinity];

  function descend(eta, c) {
    const path = [START];
    let x = START, clipped = 0;
    for (let step = 0; step < MOST; step++) {
      const g = Math.sinh(x);
      if (Math.abs(g) <= GOAL) return { path, clipped, steps: step };
      clipped += Math.abs(g) > c;
      x -= eta * Math.min(1, c / Math.abs(g)) * g;
      path.push(x);
      if (Math.abs(x) > 100) return { path, clipped, steps: null, left: true };
    }
    return { path, clipped, steps: null, left: false };
  }

  const nameOf = (c) => (c === Infinity ? "none" : String(c));

  function outcome({ clipped, steps, left }, eta, c) {
    const longest = c === Infinity ? "No threshold." : `Longest step ηc = ${Number((eta * c).toPrecision(3))}.`;
    const count = `${clipped} of them clipped`;
    if (left) return `${longest} The run is thrown out and does not come back.`;
    return steps === null
      ? `${longest} Not at the minimum after ${MOST} steps, ${count}.`
      : `${longest} ${steps} steps to slope 0.001, ${count}. Newton's method: ${NEWTON}.`;
  }

  if (typeof document === "undefined") { // the tests read it without a browser
    module.exports = { RATES, THRESHOLDS, descend, outcome };
    return;
  }

  const TALLEST = 10, SHOWN = 40; // the longest step, and how many steps, that fit in

  function draw({ eta, c }, { width, svg, text, line }) {
    const run = descend(eta, c), beside = width > 560, left = 34, right = 12, top = 26, tall = 210;
    const across = beside ? (width - 2 * left - 2 * right - 14) / 2 : width - left - right;
    const left2 = beside ? left + across + right + left + 14 : left, top2 = beside ? top : top + tall + 78;
    const height = top2 + tall + 44;
    const x = (value) => left + (value / 10) * across, y = (step) => top + (1 - step / TALLEST) * tall;
    const k = (step) => left2 + (step / SHOWN) * across, place = (value) => top2 + ((10.5 - value) / 14.5) * tall;
    const grid = Array.from({ length: 201 }, (_, i) => i / 20);
    const curve = (f) => grid.map((value) => [x(value), y(f(value))]);
    const frames = [["step-frame", left, top], ["run-frame", left2, top2]];
    const rule = (x1, y1, x2, y2) => svg("line", { x1, y1, x2, y2, stroke: "var(--rule)" });
    const parts = [svg("defs", {}, frames.map(([id, fx, fy]) =>
      svg("clipPath", { id: `why-${id}` }, [svg("rect", { x: fx, y: fy - 1, width: across + 4, height: tall + 2 })])))];

    // One step.
    for (const step of [0, 2, 4, 6, 8, 10]) {
      parts.push(rule(left, y(step), left + across, y(step)), text(String(step), [left - 7, y(step) + 4], "end"));
    }
    for (const value of [0, 2, 4, 6, 8, 10]) parts.push(text(String(value), [x(value), top + tall + 17], "middle"));
    parts.push(svg("polygon", { points: `${x(0)},${y(0)} ${x(5)},${y(10)} ${x(0)},${y(10)}`, fill: "currentColor", "fill-opacity": 0.1 }));
    parts.push(text("ends farther out", [x(0) + 6, y(10) + 18]));
    parts.push(svg("g", { "clip-path": "url(#why-step-frame)" }, [
      line(curve((value) => Math.min(2 * TALLEST, eta * Math.sinh(value))), "var(--unclipped)", 2),
      line(curve((value) => Math.min(2 * TALLEST, eta * Math.min(c, Math.sinh(value)))), "var(--clipped)", 4),
      line(curve(Math.tanh), "currentColor", 1.6, { "stroke-dasharray": "5 4" }),
    ]));
    parts.push(text("length of the step", [left - 26, top - 10]), text("x", [left + across / 2, top + tall + 35], "middle"));

    // The run.
    for (const value of [0, 5, 10]) {
      parts.push(rule(left2, place(value), left2 + across, place(value)), text(String(value), [left2 - 7, place(value) + 4], "end"));
    }
    for (const step of [0, 10, 20, 30, 40]) parts.push(text(String(step), [k(step), top2 + tall + 17], "middle"));
    const newton = [START];
    while (newton.length <= NEWTON) newton.push(newton[newton.length - 1] - Math.tanh(newton[newton.length - 1]));
    const points = run.path.slice(0, SHOWN + 1).map((value, step) => [k(step), place(Math.max(-40, Math.min(40, value)))]);
    const colour = c === Infinity ? "var(--unclipped)" : "var(--clipped)";
    parts.push(svg("g", { "clip-path": "url(#why-run-frame)" }, [
      line(points, colour, 1.6),
      ...points.map(([cx, cy]) => svg("circle", { cx, cy, r: 3.4, fill: colour })),
      line(newton.map((value, step) => [k(step), place(value)]), "currentColor", 1.6, { "stroke-dasharray": "5 4" }),
    ]));
    parts.push(text("x", [left2 - 4, top2 - 10]), text("step", [left2 + across / 2, top2 + tall + 35], "middle"));
    parts.push(text("dashed: Newton's method", [left2 + across, top2 + 12], "end"));

    const words = outcome(run, eta, c);
    return {
      height, parts, says: words,
      alt: `The length of a step on cosh x, over x, and x over the steps of the run from 10, at learning rate ${eta} and threshold `
        + `${nameOf(c)}; dashed, Newton's method. ${words}`,
    };
  }

  movable("why-step", {
    controls: [
      { name: "eta", label: "Learning rate η", values: RATES, value: 0.5 },
      { name: "c", label: "Threshold c", values: THRESHOLDS, value: 2, show: nameOf },
    ],
    draw,
  });
})();
