"use strict";
/* Elements, legends and tables. */

// Texts become text nodes: no name from a log is read as markup.
const filled = (made, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat());
  return made;
};
const element = (name, attributes = {}, ...children) =>
  filled(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
const capitalized = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const swatch = ({ colour: name, dash }) =>
  shape(
    "svg",
    { width: 22, height: 8, "aria-hidden": "true" },
    shape("line", {
      x1: 0,
      x2: 22,
      y1: 4,
      y2: 4,
      "stroke-width": 3,
      stroke: `var(${name})`,
      "stroke-dasharray": STROKES[dash],
    }),
  );
const legend = ({ series, share }) =>
  series.map((each, at) =>
    element(
      "li",
      {},
      swatch(styleOf(each, at)),
      element("span", {}, each.name),
      " ",
      element("b", {}, written(each.values.at(-1), share)),
    ),
  );
const scale = ({ table, share }) => [
  element("span", {}, share ? "0%" : "0"),
  element("span", { class: "ramp" }),
  element("span", {}, share ? "100% and more" : String(topOf(table, share))),
];

const row = (kind, cells) =>
  element(
    "tr",
    {},
    cells.map((cell, at) =>
      element(
        at && kind === "td" ? "td" : "th",
        { class: at ? "figure" : null, scope: kind === "th" ? "col" : at ? null : "row" },
        cell,
      ),
    ),
  );
const filledTable = (place, columns, rows) =>
  place.replaceChildren(
    element("thead", {}, row("th", columns)),
    element("tbody", {}, rows.map((cells) => row("td", cells))),
  );

const headTable = (place, { quantities }) => {
  const names = Object.values(quantities)[0].columns.keys();
  const latest = (kind, head) => written(quantities[kind]?.columns.get(head)?.at(-1), kind === "retention");
  filledTable(
    place,
    ["head", "score", "retention"],
    [...names].map((head) => [head, latest("score", head), latest("retention", head)]),
  );
};

const duration = (seconds) => {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
};
