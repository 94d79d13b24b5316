"use strict";
/* The picture: edges and nodes on one canvas, what is pointed at on another above it. */

// What is looked at: places of nodes, edges of a path.
const view = {
  drawn: 0,
  errors: true,
  hovered: null,
  chosen: null,
  pinned: [],
  logit: logits[0] ?? null,
  path: [],
};
const isShown = (place) => view.errors || nodes[place].kind !== "error";
const shownEdge = (edge) => isShown(source[edge]) && isShown(target[edge]);
const looked = () => view.hovered ?? view.chosen;

let inks = {};
const readInks = () => {
  const named = {
    paper: "--paper",
    ink: "--ink",
    muted: "--muted",
    rule: "--rule",
    path: "--path",
    more: "--more",
    less: "--less",
    embedding: "--embedding",
    feature: "--feature",
    error: "--error",
    logit: "--logit",
  };
  inks = Object.fromEntries(Object.entries(named).map(([key, name]) => [key, colour(name)]));
};
const fontOf = (size, weight_ = "") =>
  `${weight_} ${size}px ${getComputedStyle(document.documentElement).fontFamily}`;

const prepared = (canvas) => {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
};

const trace = (pen, edge) => {
  const [x1, y1] = toScreen(source[edge]);
  const [x2, y2] = toScreen(target[edge]);
  const bend = (y1 - y2) * 0.45;
  pen.moveTo(x1, y1);
  pen.bezierCurveTo(x1, y1 - bend, x2, y2 + bend, x2, y2);
};

// Edges of like strength and sign are one stroke: thousands of them cost no more than a few.
const GRADES = 8;
const strongestScore = score[0] || 1;
const gradeOf = score.map((value) =>
  Math.min(GRADES - 1, Math.floor(GRADES * Math.sqrt(value / strongestScore))),
);
const drawEdges = (pen) => {
  const strokes = new Map();
  for (let edge = 0; edge < view.drawn; edge += 1) {
    if (!shownEdge(edge)) continue;
    const key = 2 * gradeOf[edge] + (weight[edge] > 0 ? 1 : 0);
    if (!strokes.has(key)) strokes.set(key, []);
    strokes.get(key).push(edge);
  }
  for (const key of [...strokes.keys()].sort((one, other) => one - other)) {
    const grade = Math.floor(key / 2) / (GRADES - 1);
    pen.beginPath();
    for (const edge of strokes.get(key)) trace(pen, edge);
    pen.strokeStyle = key % 2 ? inks.more : inks.less;
    pen.globalAlpha = 0.22 + 0.6 * grade;
    pen.lineWidth = 0.7 + 3.3 * grade;
    pen.stroke();
  }
  pen.globalAlpha = 1;
};

const outline = (pen, place, size) => {
  const [x, y] = toScreen(place);
  pen.beginPath();
  const { kind } = nodes[place];
  if (kind === "feature") pen.arc(x, y, size, 0, 2 * Math.PI);
  else if (kind === "error") {
    pen.moveTo(x, y - size * 1.2);
    pen.lineTo(x + size * 1.2, y);
    pen.lineTo(x, y + size * 1.2);
    pen.lineTo(x - size * 1.2, y);
    pen.closePath();
  } else if (kind === "embedding") pen.rect(x - size, y - size, 2 * size, 2 * size);
  else {
    pen.moveTo(x, y - size * 1.25);
    pen.lineTo(x + size * 1.3, y + size);
    pen.lineTo(x - size * 1.3, y + size);
    pen.closePath();
  }
};
const drawNode = (pen, place, ring = null) => {
  outline(pen, place, radius(place));
  pen.fillStyle = inks[nodes[place].kind];
  pen.fill();
  pen.lineWidth = ring === null ? 1 : 2.5;
  pen.strokeStyle = ring ?? inks.paper;
  pen.stroke();
};

// Words and layers stay at the edge, however the picture is moved.
const drawLayers = (pen, width) => {
  for (let row = 0; row < rows; row += 1) {
    const { bottom, height } = picture.lines[row];
    const y = (picture.height - bottom + height / 2) * camera.scale + camera.y;
    pen.strokeStyle = inks.rule;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(EDGE.left, y);
    pen.lineTo(width, y);
    pen.stroke();
  }
};
const drawLayerNames = (pen, height) => {
  pen.fillStyle = inks.paper;
  pen.fillRect(0, 0, EDGE.left - 4, height);
  pen.fillStyle = inks.muted;
  pen.font = fontOf(11);
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (let row = 0; row < rows; row += 1) {
    const line = picture.lines[row];
    const y = (picture.height - line.bottom + line.height / 2) * camera.scale + camera.y;
    if (y > 6 && y < height - EDGE.bottom + 6) pen.fillText(rowName(row), EDGE.left - 8, y);
  }
};
const drawWords = (pen, width, height) => {
  const top = height - EDGE.bottom + 8;
  pen.fillStyle = inks.paper;
  pen.fillRect(0, top, width, EDGE.bottom);
  pen.font = fontOf(12);
  pen.textBaseline = "middle";
  const texts = words.map((word) => shortened(word, 12));
  const narrowest = Math.min(...picture.columns.map((column) => column.width)) * camera.scale;
  const level = texts.every(
    (text, pos) => pen.measureText(text).width + 6 <= picture.columns[pos].width * camera.scale,
  );
  const every = level ? 1 : Math.max(1, Math.ceil(11 / narrowest));
  const pointed = looked() === null ? null : nodes[looked()].pos;
  picture.columns.forEach((column, pos) => {
    const x = column.centre * camera.scale + camera.x;
    if (x < EDGE.left - 4 || x > width || (pos % every !== 0 && pos !== pointed)) return;
    if (pos !== pointed && pointed !== null && Math.abs(pos - pointed) < every) return;
    pen.fillStyle = pos === pointed ? inks.path : inks.ink;
    pen.save();
    pen.translate(x, top + 8);
    pen.textAlign = level ? "center" : "right";
    if (!level) pen.rotate(-Math.PI / 3);
    pen.fillText(texts[pos], 0, 0);
    pen.restore();
  });
};
// Names of the outputs stand above them, on two levels, as many as there is room for.
const drawOutputs = (pen) => {
  pen.font = fontOf(12, "600");
  pen.textBaseline = "bottom";
  pen.textAlign = "center";
  pen.fillStyle = inks.ink;
  const free = [-Infinity, -Infinity];
  const order = [...logits].sort((one, other) => picture.x[one] - picture.x[other]);
  for (const place of order) {
    const [x, y] = toScreen(place);
    const text = shortened(nodes[place].word, 12);
    const half = pen.measureText(text).width / 2;
    const level = free.findIndex((end) => x - half >= end);
    if (level < 0) continue;
    free[level] = x + half + 6;
    pen.fillText(text, x, y - 8 - 14 * level);
  }
};

const drawAll = () => {
  const { pen, width, height } = prepared(byId("graph"));
  pen.save();
  pen.beginPath();
  pen.rect(EDGE.left - 4, 0, width, height - EDGE.bottom + 8);
  pen.clip();
  drawLayers(pen, width);
  drawEdges(pen);
  if (view.chosen !== null) {
    // What is chosen is drawn above; the rest steps back.
    pen.globalAlpha = 0.6;
    pen.fillStyle = inks.paper;
    pen.fillRect(0, 0, width, height);
    pen.globalAlpha = 1;
  }
  nodes.forEach((_, place) => {
    if (isShown(place)) drawNode(pen, place);
  });
  pen.restore();
  drawOver();
};

const NEAR = 24; // edges of a node that are drawn when it is looked at, in either direction
const drawOver = () => {
  const { pen, width, height } = prepared(byId("over"));
  pen.save();
  pen.beginPath();
  pen.rect(EDGE.left - 4, 0, width, height - EDGE.bottom + 8);
  pen.clip();
  const place = looked();
  const touched = new Set();
  if (place !== null) {
    for (const edge of [...inputs[place].slice(0, NEAR), ...outputs[place].slice(0, NEAR)]) {
      if (!shownEdge(edge)) continue;
      pen.beginPath();
      trace(pen, edge);
      pen.strokeStyle = weight[edge] > 0 ? inks.more : inks.less;
      pen.lineWidth = 1 + 4 * Math.sqrt(share[edge]);
      pen.stroke();
      touched.add(source[edge]).add(target[edge]);
    }
  }
  for (const edge of view.path) {
    pen.beginPath();
    trace(pen, edge);
    pen.strokeStyle = inks.path;
    pen.lineWidth = 3.5;
    pen.setLineDash([9, 5]);
    pen.stroke();
    pen.setLineDash([]);
    touched.add(source[edge]).add(target[edge]);
  }
  for (const each of touched) drawNode(pen, each);
  for (const each of view.pinned) if (isShown(each)) drawNode(pen, each, inks.path);
  if (place !== null) drawNode(pen, place, inks.ink);
  drawOutputs(pen);
  pen.restore();
  drawLayerNames(pen, height);
  drawWords(pen, width, height);
};

// At most one drawing per frame, however many events ask for it.
let waiting = null;
const redraw = (all = true) => {
  if (waiting === null) {
    waiting = { all };
    requestAnimationFrame(() => {
      const { all: whole } = waiting;
      waiting = null;
      if (whole) drawAll();
      else drawOver();
    });
  } else waiting.all ||= all;
};
