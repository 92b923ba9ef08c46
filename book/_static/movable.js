// Movable figures. A figure of a notebook becomes one where book/_static/movable/ has a script of its name, which calls
//
//   movable("NAME", {
//     controls: [                                        // each becomes an entry of `state`, under its name
//       { name: "c", label: "Threshold c", values: [0.1, 1, 10], value: 1, show: String },      // a slider
//       { name: "start", label: "Start", options: [[0, "left"], [1, "right"]], value: 0 },      // a choice
//       { name: "step", label: "Play one step", seconds: 2 },    // a button: state.step runs from 0 to 1, else null
//     ],
//     draw(state, { width, name, svg, text, line }) {
//       return { height, parts: [svg("circle", {…}), …], says: "What the reader sees now.", alt: "What it shows." };
//     },
//     drag(state, x, y) {},                              // optional: a pointer, or arrow keys, at x, y of the drawing
//     at: (state) => [x, y],                             // with drag: where the dragged thing is
//   });
//
// The notebook's picture stays for print and for readers without JavaScript. Colours: currentColor, and the variables
// --clipped, --unclipped and --rule of book.css, which follow the theme. A reader who wants less motion sees the last
// frame of what a button plays. A figure NAME-more is drawn by NAME.js too.
(() => {
  "use strict";

  if (typeof document === "undefined") return;

  const html = (tag, properties = {}, children = []) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  const svg = (tag, attributes = {}, children = []) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const text = (words, [x, y], anchor = "start", more = {}) => svg("text", { x, y, "text-anchor": anchor, ...more }, [words]);
  const line = (points, stroke, width = 2, more = {}) =>
    svg("polyline", {
      points: points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" "),
      fill: "none", stroke, "stroke-width": width, "stroke-linejoin": "round", "stroke-linecap": "round", ...more,
    });

  const lessMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  function build(figure, { controls, draw, drag, at }) {
    const picture = figure.querySelector("a:has(> img), img"); // Sphinx links some pictures to their file
    const state = Object.fromEntries(controls.map(({ name, value = null }) => [name, value]));
    const buttons = controls.filter((control) => control.seconds);
    const place = html("div"), says = html("p", { className: "says" });
    says.setAttribute("role", "status");
    let width, frame;

    const update = () => {
      width = Math.max(260, Math.round(place.clientWidth || figure.clientWidth || 680));
      const { height, parts, says: words, alt } = draw(state, { width, name: figure.id, svg, text, line });
      const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt }, parts);
      if (drag) makeDraggable(drawing, height);
      const focused = place.contains(document.activeElement);
      place.replaceChildren(drawing);
      if (focused) drawing.focus();
      if (says.textContent !== words) says.textContent = words;
    };
    const stop = () => {
      cancelAnimationFrame(frame);
      for (const { name } of buttons) state[name] = null;
    };
    const play = ({ name, seconds }) => {
      stop();
      const begin = performance.now();
      const tick = (now) => {
        state[name] = lessMotion() ? 1 : Math.min(1, Math.max(0, (now - begin) / 1000 / seconds));
        update();
        if (state[name] < 1) frame = requestAnimationFrame(tick);
      };
      tick(begin);
    };

    function makeDraggable(drawing, height) {
      drawing.classList.add("draggable");
      drawing.setAttribute("tabindex", "0");
      const to = (x, y) => { stop(); drag(state, x, y); update(); };
      const follow = ({ clientX, clientY }) => {
        const box = place.getBoundingClientRect();
        to(((clientX - box.left) * width) / box.width, ((clientY - box.top) * height) / box.height);
      };
      drawing.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        follow(event);
        const move = (next) => follow(next);
        addEventListener("pointermove", move);
        for (const end of ["pointerup", "pointercancel"]) {
          addEventListener(end, () => removeEventListener("pointermove", move), { once: true });
        }
      });
      drawing.addEventListener("keydown", (event) => {
        const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (!way) return;
        event.preventDefault();
        const [x, y] = at(state), far = event.shiftKey ? 20 : 5;
        to(x + far * way[0], y + far * way[1]);
      });
    }

    function control({ name, label, values, options, seconds, show = String }) {
      const id = `${figure.id}-${name}`;
      if (values) {
        const shown = html("output");
        const slider = html("input", { type: "range", id, min: 0, max: values.length - 1, step: 1, value: values.indexOf(state[name]) });
        const set = () => {
          state[name] = values[slider.value];
          shown.value = show(state[name]);
          slider.setAttribute("aria-valuetext", shown.value);
        };
        slider.addEventListener("input", () => { stop(); set(); update(); });
        set();
        return [html("label", { htmlFor: id }, [label, slider, shown])];
      }
      if (options) {
        return [html("fieldset", {}, [html("legend", { textContent: label }), ...options.map(([value, words]) => {
          const radio = html("input", { type: "radio", name: id, value, checked: value === state[name] });
          radio.addEventListener("change", () => { stop(); state[name] = value; update(); });
          return html("label", { className: "choice" }, [radio, words]);
        })])];
      }
      const button = html("button", { type: "button", id, textContent: label });
      button.addEventListener("click", () => play({ name, seconds }));
      return [button];
    }

    figure.classList.add("movable");
    picture.classList.add("still");
    picture.before(html("div", { className: "controls" }, controls.flatMap(control)), place, says);
    new ResizeObserver(() => { if (place.clientWidth && Math.abs(place.clientWidth - width) > 1) update(); }).observe(place);
    update();
  }

  window.movable = (name, description) => {
    for (const figure of document.querySelectorAll(`figure[id="${name}"], figure[id^="${name}-"]`)) build(figure, description);
  };

  // A link to a folded section unfolds it, and so does the search within a page; paper has no folds.
  const unfold = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    target?.closest("section.fold")?.querySelector(":scope > details")?.setAttribute("open", "");
    target?.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  addEventListener("load", () => { if (document.querySelector("section.fold")) unfold(); });
})();
