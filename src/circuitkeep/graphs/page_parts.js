"use strict";
/* Shared by the page's scripts: its data, elements, numbers, what a node is called, paths. */

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

const filled = (made, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat(2).filter((child) => child !== null && child !== ""));
  return made;
};
// Texts become text nodes: nothing that the model or its tokenizer says is read as markup.
const element = (name, attributes = {}, ...children) =>
  filled(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
const button = (text, attributes, onClick) => {
  const made = element("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", onClick);
  return made;
};

// Small and large numbers alike keep three digits.
const number = (value) => {
  const size = Math.abs(value);
  const digits = size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3;
  return value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
};
const signed = (value) => (value > 0 ? `+${number(value)}` : number(value));
const percent = (share) =>
  share > 0 && share < 0.01 ? "< 1%" : `${Math.round(100 * share)}%`;
const shortened = (text, most) =>
  [...text].length > most ? `${[...text].slice(0, most - 1).join("")}…` : text;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const { nodes, words } = data;
const { source, target, weight, share, score } = data.edges;
const quoted = (place) => `“${nodes[place].word}”`;

// What a node is called where there is room, and where there is little.
const nameOf = (place) => {
  const { kind, layer, index, pos } = nodes[place];
  if (kind === "logit") return `output ${quoted(place)}`;
  const at = `${quoted(place)} (${pos})`;
  if (kind === "embedding") return `token ${at}`;
  return kind === "feature" ? `L${layer} feature ${index} at ${at}` : `L${layer} error at ${at}`;
};
const shortName = (place) => {
  const { kind, layer, index } = nodes[place];
  if (kind === "logit") return "output";
  if (kind === "embedding") return "token";
  return kind === "feature" ? `L${layer} #${index}` : `L${layer} error`;
};
const readingOf = (place) => {
  const { kind, layer, index } = nodes[place];
  return (kind === "feature" && data.features[`${layer}_${index}`]) || {};
};

// Edges stand by their part in all influence; those of a node keep that order.
const inputs = nodes.map(() => []);
const outputs = nodes.map(() => []);
source.forEach((from, edge) => {
  inputs[target[edge]].push(edge);
  outputs[from].push(edge);
});
const logits = nodes.flatMap(({ kind }, place) => (kind === "logit" ? [place] : []));

/* The strongest path from `start` to `end`: the one whose edges' shares have the largest product.
   Sources stand before their targets, so one walk down from the end finds it. A start of null is
   the best of all tokens. Returns the edges from start to end, or null where there is no path. */
const strongestPath = (start, end) => {
  const best = new Array(nodes.length).fill(0);
  const next = new Array(nodes.length).fill(null);
  best[end] = 1;
  for (let place = end; place >= 0; place -= 1) {
    if (best[place] === 0) continue;
    for (const edge of inputs[place]) {
      const product = best[place] * share[edge];
      if (product > best[source[edge]]) {
        best[source[edge]] = product;
        next[source[edge]] = edge;
      }
    }
  }
  let from = start;
  if (from === null) {
    const tokens = nodes.flatMap(({ kind }, place) => (kind === "embedding" ? [place] : []));
    from = tokens.reduce((one, other) => (best[other] > best[one] ? other : one), tokens[0]);
  }
  if (from === undefined || from === end || best[from] === 0) return null;
  const edges = [];
  for (let place = from; place !== end; place = target[edges.at(-1)]) edges.push(next[place]);
  return { edges, product: best[from] };
};
