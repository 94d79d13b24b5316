"use strict";
/* Where nodes are, in the picture's own units, and which part of it is seen. */

const STEP = 15; // between nodes of one layer and position
const NAMED = 3; // steps between outputs, which are written out
const READABLE = 0.5; // the least scale to begin with
const EDGE = { left: 52, right: 18, top: 30, bottom: 66 }; // room for words and layers, in pixels
const rowOf = (place) => nodes[place].layer + 1; // tokens are row 0
const rows = data.layers + 2;
const rowName = (row) =>
  row === 0 ? "tokens" : row === rows - 1 ? "outputs" : `layer ${row - 1}`;

const picture = { x: [], y: [], columns: [], lines: [], width: 1, height: 1 };

// Nodes of one layer and position stand in lines, so that no column is much wider than high.
const layOut = (room) => {
  const cells = new Map();
  nodes.forEach(({ pos }, place) => {
    const key = `${pos} ${rowOf(place)}`;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(place);
  });
  const across = words.map(() => 1);
  for (const [key, places] of cells) {
    const [pos, row] = key.split(" ").map(Number);
    const wide =
      row === rows - 1 ? places.length * NAMED : Math.ceil(Math.sqrt(2 * places.length));
    across[pos] = Math.max(across[pos], wide);
  }
  let left = 0;
  picture.columns = across.map((count) => {
    const width = Math.max(count * STEP, 22) + 12;
    left += width;
    return { left: left - width, width, centre: left - width / 2 };
  });
  picture.width = left;
  const deep = Array.from({ length: rows }, () => 1);
  for (const [key, places] of cells) {
    const [pos, row] = key.split(" ").map(Number);
    if (row < rows - 1) deep[row] = Math.max(deep[row], Math.ceil(places.length / across[pos]));
  }
  const used = deep.reduce((sum, lines) => sum + lines * STEP, 0);
  // As high as the room is at the scale it begins with, but never without space between layers.
  const high = room.height / Math.min(2.5, Math.max(room.width / picture.width, READABLE));
  const space = Math.max((high - used) / (rows - 1), 36);
  let bottom = 0;
  picture.lines = deep.map((lines) => {
    bottom += lines * STEP + space;
    return { bottom: bottom - space, height: lines * STEP };
  });
  picture.height = bottom - space;
  for (const [key, places] of cells) {
    const [pos, row] = key.split(" ").map(Number);
    const wide = row === rows - 1 ? places.length : across[pos];
    const step = row === rows - 1 ? NAMED * STEP : STEP;
    places.forEach((place, at) => {
      const line = Math.floor(at / wide);
      const inLine = Math.min(wide, places.length - line * wide);
      picture.x[place] = picture.columns[pos].centre + ((at % wide) - (inLine - 1) / 2) * step;
      picture.y[place] = picture.height - picture.lines[row].bottom + (line + 0.5) * STEP;
    });
  }
};

// The part that is seen: a scale, and where the picture's corner lies in the canvas.
const camera = { scale: 1, x: 0, y: 0 };
const canvasRoom = () => {
  const box = byId("graph").getBoundingClientRect();
  return {
    width: Math.max(40, box.width - EDGE.left - EDGE.right),
    height: Math.max(40, box.height - EDGE.top - EDGE.bottom),
  };
};
const toScreen = (place) => [
  picture.x[place] * camera.scale + camera.x,
  picture.y[place] * camera.scale + camera.y,
];
const fitScale = () => {
  const room = canvasRoom();
  return Math.min(room.width / picture.width, room.height / picture.height, 2.5);
};
// The whole picture; or, where that would be too small to read, its end, with the outputs.
const fit = (whole = true) => {
  const room = canvasRoom();
  camera.scale = whole ? fitScale() : Math.max(fitScale(), READABLE);
  const [width, height] = [picture.width, picture.height].map((size) => size * camera.scale);
  camera.x =
    width > room.width ? EDGE.left + room.width - width : EDGE.left + (room.width - width) / 2;
  camera.y = EDGE.top + Math.max(0, (room.height - height) / 2);
};
const zoom = (factor, x, y) => {
  const scale = Math.min(8, Math.max(fitScale() * 0.5, camera.scale * factor));
  camera.x = x - ((x - camera.x) * scale) / camera.scale;
  camera.y = y - ((y - camera.y) * scale) / camera.scale;
  camera.scale = scale;
  keepInSight();
};
const pan = (x, y) => {
  camera.x += x;
  camera.y += y;
  keepInSight();
};
// Some of the picture is always seen.
const keepInSight = () => {
  const room = canvasRoom();
  const held = (value, size, start, space) =>
    Math.min(start + space - 40, Math.max(start + 40 - size, value));
  camera.x = held(camera.x, picture.width * camera.scale, EDGE.left, room.width);
  camera.y = held(camera.y, picture.height * camera.scale, EDGE.top, room.height);
};
const bringIntoSight = (place) => {
  const room = canvasRoom();
  const [x, y] = toScreen(place);
  const out = (value, start, space) => {
    if (value < start - 2) return start + space / 4 - value;
    return value > start + space + 2 ? start + (3 * space) / 4 - value : 0;
  };
  pan(out(x, EDGE.left, room.width), out(y, EDGE.top, room.height));
};

const radius = (place) => {
  const size = 2.6 + 5 * Math.min(1, Math.sqrt(nodes[place].influence * 8));
  const base = nodes[place].kind === "logit" || nodes[place].kind === "embedding" ? 5 : size;
  return base * Math.min(1.6, Math.max(0.75, Math.sqrt(camera.scale)));
};
const nodeAt = (x, y, reach) => {
  let [found, closest] = [null, Infinity];
  nodes.forEach((_, place) => {
    if (!isShown(place)) return;
    const [nodeX, nodeY] = toScreen(place);
    const away = Math.hypot(nodeX - x, nodeY - y) - radius(place);
    if (away < reach && away < closest) [found, closest] = [place, away];
  });
  return found;
};
// The next node in a direction: along its row, or in the closest row that has any.
const neighbour = (place, right, up) => {
  const shown = nodes.flatMap((_, each) => (each !== place && isShown(each) ? [each] : []));
  const ahead = up
    ? shown.filter((each) => (rowOf(each) - rowOf(place)) * up > 0)
    : shown.filter((each) => rowOf(each) === rowOf(place) && (each - place) * right > 0);
  const away = (each) =>
    up
      ? Math.abs(rowOf(each) - rowOf(place)) * 1e6 + Math.abs(picture.x[each] - picture.x[place])
      : Math.abs(each - place);
  return ahead.reduce((one, each) => (one === null || away(each) < away(one) ? each : one), null);
};
