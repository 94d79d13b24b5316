"use strict";
/* Pointer, wheel and keys over the picture; the slider, the search, the choice of an output. */

const tip = byId("tip");
const showTip = (place, x, y) => {
  tip.hidden = place === null;
  if (place === null) return;
  const { kind, activation, influence, probability } = nodes[place];
  const { promoted } = readingOf(place);
  tip.replaceChildren(
    element("strong", {}, nameOf(place)),
    element(
      "div",
      { class: "quiet" },
      kind === "logit" ? `probability ${percent(probability)}` : `influence ${percent(influence)}`,
      kind === "feature" ? `, activation ${number(activation)}` : "",
    ),
    promoted && promoted.length
      ? element("div", { class: "quiet" }, `promotes ${promoted.slice(0, 4).map(([word]) => word).join(" ")}`)
      : "",
  );
  const box = byId("stage").getBoundingClientRect();
  tip.style.left = `${Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 12 : y + 18}px`;
};

const hover = (place, x, y) => {
  showTip(place, x, y);
  if (place === view.hovered) return;
  view.hovered = place;
  tell();
  redraw(false);
};

const showPath = () => {
  const end = view.chosen ?? view.logit;
  view.path = (byId("show-path").checked && end !== null && pathOf(end)?.edges) || [];
};
const choose = (place) => {
  view.chosen = place;
  view.hovered = null;
  tip.hidden = true;
  showPath();
  if (place !== null) {
    if (!isShown(place)) {
      byId("errors").checked = view.errors = true;
    }
    bringIntoSight(place);
  }
  tell();
  redraw();
};
const click = (place) => {
  if (place === null) choose(null);
  else if (view.chosen === place && view.pinned.includes(place)) unpin(place);
  else {
    choose(place);
    pin([place]);
  }
};

const setUpPointer = (canvas) => {
  const pressed = new Map();
  let [moved, spread] = [0, null];
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const reach = (event) => (event.pointerType === "mouse" ? 6 : 14);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pressed.set(event.pointerId, at(event));
    if (pressed.size === 1) moved = 0;
    spread = null;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    const before = pressed.get(event.pointerId);
    if (before === undefined) {
      hover(nodeAt(x, y, reach(event)), x, y);
      return;
    }
    pressed.set(event.pointerId, [x, y]);
    moved += Math.hypot(x - before[0], y - before[1]);
    if (pressed.size === 1) {
      if (moved <= 4) return;
      hover(null);
      pan(x - before[0], y - before[1]);
    } else {
      const [[x1, y1], [x2, y2]] = [...pressed.values()];
      const apart = Math.hypot(x1 - x2, y1 - y2);
      if (spread !== null) zoom(apart / spread, (x1 + x2) / 2, (y1 + y2) / 2);
      spread = apart;
    }
    redraw();
  });
  const lift = (event) => {
    if (!pressed.delete(event.pointerId) || event.type === "pointercancel") return;
    if (moved <= 4 && pressed.size === 0) click(nodeAt(...at(event), reach(event)));
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const [x, y] = at(event);
      if (event.shiftKey) pan(-event.deltaY - event.deltaX, 0);
      else zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 250), x, y);
      hover(null);
      redraw();
    },
    { passive: false },
  );
};

const zoomMiddle = (factor) => {
  const room = canvasRoom();
  zoom(factor, EDGE.left + room.width / 2, EDGE.top + room.height / 2);
  redraw();
};
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const setUpKeys = (canvas) => {
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = STEPS[event.key];
    if (step && event.shiftKey) {
      pan(-60 * step[0], 60 * step[1]);
      redraw();
    } else if (step) {
      const start = view.chosen ?? view.logit;
      const next = view.chosen === null ? start : neighbour(start, ...step);
      if (next !== null) choose(next);
    } else if ((event.key === "Enter" || event.key === " ") && view.chosen !== null) {
      if (view.pinned.includes(view.chosen)) unpin(view.chosen);
      else pin([view.chosen]);
    } else if (event.key === "+" || event.key === "=") zoomMiddle(1.3);
    else if (event.key === "-") zoomMiddle(1 / 1.3);
    else if (event.key === "0") {
      fit();
      redraw();
    } else if (event.key === "Escape") choose(null);
    else return;
    event.preventDefault();
  });
};

// The slider runs over powers, so that few edges can be told apart as well as many.
const sliderEdges = (value) => Math.round(source.length ** (value / 100));
const cumulative = [];
score.reduce((sum, value, edge) => (cumulative[edge] = sum + value), 0);
const showEdges = () => {
  const slider = byId("edges");
  const value = Number(slider.value);
  view.drawn = value === 0 || source.length === 0 ? 0 : sliderEdges(value);
  const part = view.drawn === 0 ? 0 : cumulative[view.drawn - 1] / cumulative.at(-1);
  const text = `${view.drawn} of ${source.length} edges, ${percent(part)} of influence`;
  byId("edges-said").textContent = text;
  slider.setAttribute("aria-valuetext", text);
  redraw();
};

const FOUND = 40;
const matches = (asked) => {
  const text = asked.trim().toLowerCase();
  if (text === "") return [];
  const plain = (word) => word.replaceAll("␣", " ").trim().toLowerCase();
  const feature = /^(?:l(\d+)\s*)?(?:feature|#)?\s*(\d+)$/.exec(text);
  const layer = /^l(\d+)$/.exec(text);
  const wanted = (place) => {
    const { kind, index, layer: own, word } = nodes[place];
    if (layer) return own === Number(layer[1]) && kind !== "logit";
    if (feature && kind === "feature" && index === Number(feature[2])) {
      return feature[1] === undefined || own === Number(feature[1]);
    }
    const { promoted = [] } = readingOf(place);
    return plain(word).includes(text) || promoted.some(([each]) => plain(each) === text);
  };
  return nodes
    .flatMap((_, place) => (wanted(place) ? [place] : []))
    .sort((one, other) => (nodes[other].influence || 1) - (nodes[one].influence || 1));
};
const showFound = () => {
  const asked = byId("search").value;
  const found = matches(asked);
  byId("found").replaceChildren(
    ...found.slice(0, FOUND).map((place) => element("li", {}, mark(place), nodeButton(place))),
  );
  byId("found-said").textContent =
    asked.trim() === ""
      ? ""
      : `${found.length === 0 ? "no node" : found.length === 1 ? "1 node" : `${found.length} nodes`}${
          found.length > FOUND ? `, the ${FOUND} most influential are listed` : ""
        }`;
};

const setUpControls = () => {
  byId("edges").addEventListener("input", showEdges);
  byId("search").addEventListener("input", showFound);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    byId("found").querySelector("button")?.click();
  });
  byId("errors").addEventListener("change", (event) => {
    view.errors = event.target.checked;
    redraw();
  });
  byId("show-path").addEventListener("change", () => {
    showPath();
    redraw();
  });
  byId("logit").replaceChildren(
    ...logits.map((place) =>
      element("option", { value: String(place) }, `${quoted(place)} ${percent(nodes[place].probability)}`),
    ),
  );
  byId("logit").addEventListener("change", (event) => {
    view.logit = Number(event.target.value);
    showPath();
    tell(true);
    redraw();
  });
  byId("zoom-in").addEventListener("click", () => zoomMiddle(1.3));
  byId("zoom-out").addEventListener("click", () => zoomMiddle(1 / 1.3));
  byId("fit").addEventListener("click", () => {
    fit();
    redraw();
  });
  byId("clear").addEventListener("click", () => {
    view.pinned = [];
    showPins();
  });
};
