// The movable figure of theory/exploding-gradients.ipynb: the gradient's norm by layer, for one network whose weights are
// multiplied by a factor, of any depth up to 60, under four activations.
(() => {
  "use strict";

  // The model, as book/theory/networks.py has it -------------------------------------------------------------------

  const WIDTH = 64, FAN = [0.8, 0.9, 1, 1.1, 1.2, 1.5, 2];
  const FACTORS = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.5, 3, 4, 6, 8];
  const DEPTHS = [1, 2, 3, 5, 8, 10, 15, 20, 25, 30, 40, 50, 60];
  const sigmoid = (z) => 1 / (1 + Math.exp(-z));
  const ACTIVATIONS = {
    relu: { name: "ReLU", scale: Math.SQRT2, value: (z) => Math.max(z, 0), slope: (z) => (z > 0 ? 1 : 0) },
    tanh: { name: "tanh", scale: 1, value: Math.tanh, slope: (z) => 1 - Math.tanh(z) ** 2 },
    sigmoid: { name: "sigmoid", scale: 1, value: sigmoid, slope: (z) => sigmoid(z) * (1 - sigmoid(z)) },
    identity: { name: "no activation", scale: 1, value: (z) => z, slope: () => 1 },
  };

  function scattered(index) { // networks.scattered: the bits of the index, mixed
    let bits = (index + 0x9e3779b9) >>> 0;
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b) >>> 0;
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35) >>> 0;
    bits = (bits ^ (bits >>> 16)) >>> 0;
    return (bits / 2 ** 31 - 1) * Math.sqrt(3);
  }

  let drawn = new Float64Array(0); // the weights before the scale, drawn once

  function weights(count) {
    if (drawn.length < count) drawn = Float64Array.from({ length: count }, (_, i) => scattered(WIDTH + i));
    return drawn;
  }

  const length = (vector) => Math.hypot(...vector);

  // The norms at layers 1 … depth + 1, of what arrives and of the weights' gradient, when 1 leaves the output.
  function norms(factor, depth, activation) {
    const { scale, value, slope } = ACTIVATIONS[activation];
    const all = weights((depth * WIDTH + 1) * WIDTH), size = (factor * scale) / Math.sqrt(WIDTH);
    const weight = (layer, i, j) => size * all[(layer * WIDTH + i) * WIDTH + j];
    const inputs = [Array.from({ length: WIDTH }, (_, j) => scattered(j))], slopes = [];
    for (let layer = 0; layer < depth; layer++) {
      const from = inputs[layer];
      const z = from.map((_, i) => from.reduce((sum, a, j) => sum + weight(layer, i, j) * a, 0));
      inputs.push(z.map(value));
      slopes.push(z.map(slope));
    }
    let delta = [1];
    const arriving = [1];
    for (let layer = depth; layer > 0; layer--) {
      const later = delta;
      delta = slopes[layer - 1].map((s, j) => s * later.reduce((sum, d, i) => sum + d * weight(layer, i, j), 0));
      arriving.unshift(length(delta));
    }
    return { arriving, weights: arriving.map((norm, layer) => norm * length(inputs[layer])) };
  }

  const powers = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  const tenTo = (power) => `10${[...String(power)].map((c) => powers[c]).join("")}`;

  function written(number) { // three digits
    if (number === 0) return "0";
    if (number >= 1e-3 && number < 1e5) return String(Number(number.toPrecision(3)));
    const [digits, power] = number.toExponential(2).split("e");
    return `${digits} · ${tenTo(Number(power))}`;
  }

  function told({ factor, depth, activation, shown }) {
    const its = norms(factor, depth, activation)[shown], level = norms(1, depth, activation)[shown];
    const what = shown === "weights" ? "The norm of the weights' gradient at layer 1 is" : "Of a gradient of 1 at the output, layer 1 gets";
    const ratio = factor === 1 ? "" : `, ${written(its[0] / level[0])} times as much as with weights × 1`;
    return `${ACTIVATIONS[activation].name}, ${depth} hidden layer${depth > 1 ? "s" : ""}, weights × ${factor}. ${what} ${written(its[0])}${ratio}.`;
  }

  if (typeof document === "undefined") { // the tests read it without a browser
    module.exports = { norms, told };
    return;
  }

  // The figure -----------------------------------------------------------------------------------------------------

  const kept = new Map();
  function once(factor, depth, activation) {
    const key = `${factor} ${depth} ${activation}`;
    if (!kept.has(key)) kept.set(key, norms(factor, depth, activation));
    return kept.get(key);
  }

  function draw(state, { width, svg, text, line }) {
    const { factor, depth, activation, shown } = state;
    const left = 52, right = 70, top = 26, tall = Math.round(Math.min(300, Math.max(220, 0.5 * width)));
    const across = width - left - right, height = top + tall + 44;
    const lines = new Map([...FAN, factor].map((f) => [f, once(f, depth, activation)[shown]]));
    const logs = [...lines.values()].flat().filter((norm) => norm > 0).map(Math.log10);
    const low = Math.min(-2, Math.floor(Math.min(...logs))), high = Math.max(2, Math.ceil(Math.max(...logs)));
    const x = (layer) => left + ((layer - 1) / depth) * across;
    const y = (norm) => top + ((high - Math.log10(norm)) / (high - low)) * tall;
    const path = (its) => its.map((norm, i) => [x(i + 1), norm > 0 ? y(norm) : top + tall]);
    const parts = [text(shown === "weights" ? "norm of the weights' gradient" : "norm of the gradient that arrives", [4, 14])];
    const every = Math.ceil((high - low) / 5);
    for (let power = Math.ceil(low / every) * every; power <= high; power += every) {
      const at = y(10 ** power);
      parts.push(svg("line", { x1: left, x2: left + across, y1: at, y2: at, stroke: "var(--rule)" }));
      parts.push(text(tenTo(power), [left - 6, at + 4], "end"));
    }
    for (const [f, its] of lines) if (f !== factor) parts.push(line(path(its), "currentColor", 1.2, { opacity: 0.35 }));
    const chosen = lines.get(factor), end = path(chosen)[0];
    parts.push(line(path(chosen), "var(--unclipped)", 3));
    parts.push(svg("circle", { cx: end[0], cy: end[1], r: 5, fill: "var(--unclipped)" }));
    const atEnd = path(chosen)[depth];
    parts.push(text(`× ${factor}`, [atEnd[0] + 8, atEnd[1] + 5], "start", { fill: "var(--unclipped)", "font-weight": 700 }));
    parts.push(text("1", [x(1), top + tall + 18], "middle"));
    parts.push(text(String(depth + 1), [x(depth + 1), top + tall + 18], "middle"));
    parts.push(text(`layer (${depth + 1} is the output)`, [left + across / 2, top + tall + 36], "middle"));
    const words = told(state);
    return {
      height, parts, says: words,
      alt: `Norm by layer on a logarithmic axis, thin lines for weights times 0.8 to 2, and the chosen one thick. ${words}`,
    };
  }

  movable("exploding-fan", {
    controls: [
      { name: "factor", label: "Weights ×", values: FACTORS, value: 1.1, show: String },
      { name: "depth", label: "Hidden layers", values: DEPTHS, value: 30, show: String },
      { name: "activation", label: "Activation", options: Object.entries(ACTIVATIONS).map(([key, { name }]) => [key, name]), value: "relu" },
      { name: "shown", label: "Gradient of", options: [["arriving", "what a layer computes"], ["weights", "its weights"]], value: "arriving" },
    ],
    draw,
  });
})();
