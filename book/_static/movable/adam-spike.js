// A spike through Adam's two averages, by its size and β₂: book/theory/adam-and-a-spike.ipynb computes the same.
(() => {
  "use strict";

  const BETA1 = 0.9, STEPS = 20000;
  const X = [1, STEPS], Y = [-4.4, 1.3];

  // Adam's steps in units of η from the spike on; before it, every gradient was 1, and after it as well.
  function adamSteps(spike, beta2) {
    let m = 1, v = 1;
    const steps = new Float64Array(STEPS);
    for (let k = 0; k < STEPS; k++) {
      const g = k === 0 ? spike : 1;
      m = BETA1 * m + (1 - BETA1) * g;
      v = beta2 * v + (1 - beta2) * g * g;
      steps[k] = m / Math.sqrt(v);
    }
    return steps;
  }

  // The picture needs one point in each of its columns.
  const COUNTS = [...new Set(Array.from({ length: 400 }, (_, i) => Math.round(STEPS ** (i / 399))))];

  const signed = (value) => value.toFixed(2).replace("-", "−");

  function told(size, beta2, steps) {
    const backwards = Math.max(0, steps.findIndex((step) => step > 0)), half = Math.max(0, steps.findIndex((step) => step > 0.5));
    return `A gradient of −${size} at β₂ = ${beta2}. First step: ${signed(steps[0])} η. `
      + `Steps backwards: ${backwards}. Half the usual length again after ${half} steps.`;
  }

  function draw({ size, beta2 }, { width, svg, text, line }) {
    const left = 40, right = 12, top = 14, across = width - left - right, down = 250;
    const x = (k) => left + (Math.log10(k / X[0]) / Math.log10(X[1] / X[0])) * across;
    const y = (step) => top + ((Y[1] - step) / (Y[1] - Y[0])) * down;
    const steps = adamSteps(-size, beta2), clipped = adamSteps(-1, beta2);
    const curve = (values, stroke) => line(COUNTS.map((k) => [x(k), y(values[k - 1])]), stroke, 2.6);
    const parts = [];
    for (const step of [-4, -3, -2, -1, 0, 1]) {
      parts.push(svg("line", { x1: left, x2: left + across, y1: y(step), y2: y(step), stroke: step ? "var(--rule)" : "currentColor" }));
      parts.push(text(String(step).replace("-", "−"), [left - 8, y(step) + 4], "end"));
    }
    for (const [k, name] of [[1, "1"], [10, "10"], [100, "100"], [1000, "1000"], [10000, "10,000"]]) {
      parts.push(text(name, [x(k), top + down + 18], k === 1 ? "start" : "middle"));
    }
    parts.push(text("step, counted from the spike", [left + across / 2, top + down + 38], "middle"));
    parts.push(curve(steps, "var(--unclipped)"), curve(clipped, "var(--clipped)"));
    parts.push(text("step, in learning rates η", [left, top + 6]));
    parts.push(text("clipped at 1", [x(120), y(1) - 8], "middle", { fill: "var(--clipped)", "font-weight": 650 }));
    parts.push(text("not clipped", [x(120), y(steps[119]) + 20], "middle", { fill: "var(--unclipped)", "font-weight": 650 }));
    const says = told(size, beta2, steps);
    return {
      height: top + down + 48, parts, says,
      alt: `Adam's step, in learning rates, against the steps since a spike. Vermilion: not clipped. Blue: clipped at 1. ${says}`,
    };
  }

  movable("adam-spike", {
    controls: [
      { name: "size", label: "Size of the spike", values: [3, 10, 30, 100, 300, 1000, 3000, 10000], value: 1000 },
      { name: "beta2", label: "β₂", values: [0.9, 0.95, 0.98, 0.99, 0.999], value: 0.999 },
    ],
    draw,
  });
})();
