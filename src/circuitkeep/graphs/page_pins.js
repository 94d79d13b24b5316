"use strict";
/* The subgraph of pinned nodes: a drawing by layer and position, and a list. */

const BOX = { width: 132, height: 40, across: 18, down: 46 };

const pin = (places) => {
  view.pinned = [...new Set([...view.pinned, ...places])].sort((one, other) => one - other);
  showPins();
};
const unpin = (place) => {
  view.pinned = view.pinned.filter((each) => each !== place);
  showPins();
};
const showPins = () => {
  drawPins();
  tell(true);
  redraw(false);
};

// Rows are the layers, columns the positions that occur; what shares both stands side by side.
const boxesOf = (places) => {
  const present = (of) => [...new Set(places.map(of))].sort((one, other) => one - other);
  const [layers, positions] = [present(rowOf), present((place) => nodes[place].pos)];
  const cell = (layer, pos) =>
    places.filter((place) => rowOf(place) === layer && nodes[place].pos === pos);
  const boxes = new Map();
  let left = 0;
  for (const pos of positions) {
    const wide = Math.max(...layers.map((layer) => cell(layer, pos).length));
    layers.forEach((layer, at) => {
      const own = cell(layer, pos);
      const start = left + ((wide - own.length) * (BOX.width + BOX.across)) / 2;
      own.forEach((place, number_) => {
        boxes.set(place, {
          x: start + number_ * (BOX.width + BOX.across),
          y: (layers.length - 1 - at) * (BOX.height + BOX.down),
        });
      });
    });
    left += wide * (BOX.width + BOX.across);
  }
  return { boxes, width: left - BOX.across, height: layers.length * (BOX.height + BOX.down) - BOX.down };
};

const pinnedEdges = () => {
  const own = new Set(view.pinned);
  return source.flatMap((from, edge) => (own.has(from) && own.has(target[edge]) ? [edge] : []));
};

const side = (edge) => (weight[edge] > 0 ? "more" : "less");
const curveOf = (edge, boxes) => {
  const [from, to] = [boxes.get(source[edge]), boxes.get(target[edge])];
  const [x1, y1] = [from.x + BOX.width / 2, from.y];
  const [x2, y2] = [to.x + BOX.width / 2, to.y + BOX.height];
  const passed = Math.round((y1 - y2 - BOX.down) / (BOX.height + BOX.down));
  // An edge within a column that passes other boxes bows out beside them.
  const bow = x1 === x2 && passed > 0 ? BOX.width * (0.85 + 0.25 * passed) : 0;
  const bend = Math.max(20, (y1 - y2) * 0.4);
  const points = [[x1, y1], [x1 - bow, y1 - bend], [x2 - bow, y2 + bend], [x2, y2]];
  const [start, ...rest] = points.map((point) => point.join(","));
  return { edge, points, bow, d: `M${start}C${rest.join(" ")}` };
};
const pointOn = (points, part) => {
  const parts = [(1 - part) ** 3, 3 * part * (1 - part) ** 2, 3 * part ** 2 * (1 - part), part ** 3];
  return [0, 1].map((axis) => points.reduce((sum, point, at) => sum + parts[at] * point[axis], 0));
};
// A value stands where its line meets no box and no other value; where there is no such place, it
// is told when the line is pointed at.
const labelsOf = (curves, boxes) => {
  const taken = [...boxes.values()].map(({ x, y }) => ({ x, y, ...BOX }));
  return curves.flatMap(({ edge, points }) => {
    const text = signed(weight[edge]);
    const [width, height] = [7 * text.length + 4, 14];
    for (const part of [0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.12, 0.88]) {
      const [x, y] = pointOn(points, part);
      const own = { x: x - width / 2, y: y - height / 2, width, height };
      const free = taken.every(
        (other) =>
          own.x > other.x + other.width || other.x > own.x + width ||
          own.y > other.y + other.height || other.y > own.y + height,
      );
      if (!free) continue;
      taken.push(own);
      return [shape("text", { x, y: y + 4, class: `label ${side(edge)}` }, text)];
    }
    return [];
  });
};

const drawPins = () => {
  const place_ = byId("subgraph");
  byId("clear").disabled = view.pinned.length === 0;
  if (view.pinned.length === 0) {
    place_.replaceChildren(element("p", { class: "quiet" }, "Nothing is pinned: click nodes in the picture."));
    byId("pins").replaceChildren();
    return;
  }
  const { boxes, width, height } = boxesOf(view.pinned);
  const edges = pinnedEdges();
  const curves = edges.map((edge) => curveOf(edge, boxes));
  const aside = Math.max(4, ...curves.map(({ bow }) => 0.75 * bow - BOX.width / 2 + 24));
  const drawing = shape("svg", {
    viewBox: `${-aside} -4 ${width + aside + 4} ${height + 8}`,
    width: width + aside + 4,
    role: "img",
    "aria-label": `Subgraph of ${view.pinned.length} pinned nodes and ${edges.length} edges`,
  });
  for (const { edge, d } of [...curves].reverse()) {
    drawing.append(
      shape(
        "path",
        { d, class: `edge ${side(edge)}`, "stroke-width": (1 + 5 * Math.sqrt(share[edge])).toFixed(2) },
        shape("title", {}, `${nameOf(source[edge])} adds ${signed(weight[edge])} to ${nameOf(target[edge])}`),
      ),
    );
  }
  for (const [place, { x, y }] of boxes) {
    drawing.append(
      shape("rect", { x, y, width: BOX.width, height: BOX.height, rx: 6, class: nodes[place].kind }),
      shape("text", { x: x + BOX.width / 2, y: y + 17, class: "title" }, shortened(quoted(place), 16)),
      shape(
        "text",
        { x: x + BOX.width / 2, y: y + 32, class: "detail" },
        `${shortName(place)}, ${nodes[place].kind === "logit" ? percent(nodes[place].probability) : `at ${nodes[place].pos}`}`,
      ),
    );
  }
  drawing.append(...labelsOf(curves, boxes));
  place_.replaceChildren(drawing);
  byId("pins").replaceChildren(
    ...view.pinned.map((place) =>
      element(
        "li",
        {},
        mark(place),
        nodeButton(place),
        " ",
        button("×", { class: "remove", "aria-label": `Remove ${nameOf(place)}` }, () => {
          const at = view.pinned.indexOf(place);
          unpin(place);
          const left = byId("pins").querySelectorAll(".remove");
          (left[Math.min(at, left.length - 1)] ?? byId("graph")).focus();
        }),
      ),
    ),
  );
};
