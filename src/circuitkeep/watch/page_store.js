"use strict";
/* What the server has said so far, and which of it is drawn together. */

const SHARES = ["identity", "causal", "behaviour"];

// The server sends steps from the first that changed; what is known from there on is void.
let merged = 0;
const merge = (tables, news) => {
  merged += 1;
  if (news.reset) tables.clear();
  for (const { key, steps, columns } of news.tables) {
    const id = JSON.stringify(key);
    if (!tables.has(id)) tables.set(id, { key, steps: [], columns: new Map(), version: 0 });
    const table = tables.get(id);
    while (table.steps.length && table.steps.at(-1) >= steps[0]) {
      table.steps.pop();
      for (const values of table.columns.values()) values.pop();
    }
    const before = table.steps.length;
    for (const name of Object.keys(columns)) {
      if (!table.columns.has(name)) table.columns.set(name, new Array(before).fill(null));
    }
    // Not by push(...steps): that many arguments are too many.
    for (const step of steps) table.steps.push(step);
    for (const [name, values] of table.columns) {
      const added = Object.hasOwn(columns, name) ? columns[name] : new Array(steps.length).fill(null);
      for (const value of added) values.push(value);
    }
    table.version = merged;
  }
};

const line = (table, name, style = null) => ({
  name,
  style,
  table,
  steps: table.steps,
  values: table.columns.get(""),
});
const lines = (id, title, series, more = {}) => ({ id, title, series, kind: "lines", ...more });

// Which circuit a metric belongs to: names may hold slashes, so the longest that fits.
const circuitOf = (metric, circuits) =>
  [...circuits]
    .filter((name) => metric.startsWith(`circuit/${name}/`))
    .sort((one, other) => other.length - one.length)[0];

/* A list of {id, title, charts, now}: one section per circuit, then the training, capability, and
   what nobody asked for. `now` is what a circuit's line of the summary shows. */
const arrange = (tables) => {
  const heads = [...tables.values()].filter(({ key }) => key[0] === "heads");
  const metrics = new Map();
  for (const table of tables.values()) if (table.key[0] === "metrics") metrics.set(table.key[1], table);
  const circuits = new Set(heads.map(({ key }) => key[1]));
  for (const metric of metrics.keys()) {
    const named = /^circuit\/(.+)\/(?:identity|causal|behaviour)_retention$/.exec(metric);
    if (named !== null) circuits.add(named[1]);
  }
  for (const metric of metrics.keys()) {
    const first = /^circuit\/([^/]+)\/./.exec(metric);
    if (first !== null && circuitOf(metric, circuits) === undefined) circuits.add(first[1]);
  }
  const left = new Map([...metrics].sort(([one], [other]) => (one < other ? -1 : 1)));
  const take = (name) => {
    const table = left.get(name);
    left.delete(name);
    return table;
  };
  const sections = [...circuits].map((circuit) => circuitSection(circuit, circuits, heads, left, take));
  for (const [title, test] of [
    ["Training", /^(train|val)\//],
    ["Capability", /^capability\//],
    ["Also logged", /^/],
  ]) {
    const together = new Map();
    for (const metric of [...left.keys()].filter((name) => test.test(name))) {
      // Losses beside losses: what ends in the same word has the same unit.
      const unit = title === "Also logged" ? metric : metric.split("/").at(-1);
      const short = title === "Capability" ? metric.split("/").slice(1, -1).join("/") : metric;
      if (!together.has(unit)) together.set(unit, []);
      together.get(unit).push(line(take(metric), short || metric));
    }
    const charts = [...together].map(([unit, series]) => lines(`${title} ${unit}`, worded(unit), series));
    if (charts.length) sections.push({ id: title, title, charts, now: null });
  }
  return sections;
};

const circuitSection = (circuit, circuits, heads, left, take) => {
  const prefix = `circuit/${circuit}/`;
  const mine = () => [...left.keys()].filter((name) => circuitOf(name, circuits) === circuit);
  const id = (part) => `${prefix}${part}`;
  const charts = [];
  const now = { shares: {}, lost: [], risen: [], penalty: null };
  const shares = [];
  for (const kind of SHARES) {
    const table = take(`${prefix}${kind}_retention`);
    if (table !== undefined) shares.push(line(table, kind, `--${kind}`));
    now.shares[kind] = table ?? null;
  }
  if (shares.length) charts.push(lines(id("retention"), "Retention", shares, { share: true }));
  const moved = [];
  for (const metric of mine()) {
    const match = /^(.+)\/(lost|risen)$/.exec(metric.slice(prefix.length));
    if (match === null) continue;
    const table = take(metric);
    now[match[2]].push(table);
    moved.push(line(table, `${match[1]} ${match[2]}`));
  }
  if (moved.length) charts.push(lines(id("moved"), "Heads lost and risen", moved, { count: true }));
  const penalties = [];
  for (const metric of mine()) {
    const match = /^penalty(?:\/(.+))?$/.exec(metric.slice(prefix.length));
    if (match === null) continue;
    const table = take(metric);
    if (match[1] === undefined) now.penalty = table;
    penalties.push(line(table, match[1] ?? "all terms"));
  }
  if (penalties.length) charts.push(lines(id("penalty"), "Penalty", penalties));
  const roles = new Map();
  for (const table of heads.filter(({ key }) => key[1] === circuit)) {
    const [, , role, quantity] = table.key;
    roles.set(role, { ...roles.get(role), [quantity]: table });
  }
  for (const [role, quantities] of roles) {
    take(`${prefix}${role}/score`); // their mean
    charts.push({ id: id(`${role} heads`), title: role, kind: "heads", quantities });
  }
  for (const metric of mine()) {
    const name = metric.slice(prefix.length);
    charts.push(lines(id(`other ${name}`), worded(name), [line(take(metric), name)]));
  }
  return { id: `circuit ${circuit}`, title: circuit, charts, now };
};

const worded = (name) => {
  const text = name.replace(/_nats$/, ", nats").replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
};

/* At most `most` of `values`, as places: the lowest and the highest of every stretch, so that no
   peak is lost, and the first that is no number, so that no gap is. */
const thinned = (values, most) => {
  if (values.length <= most) return values.map((_, at) => at);
  const stretch = Math.ceil((3 * values.length) / most);
  const kept = [];
  for (let start = 0; start < values.length; start += stretch) {
    const places = new Set();
    let [low, high] = [-1, -1];
    for (let at = start; at < Math.min(values.length, start + stretch); at += 1) {
      if (values[at] === null) {
        if (places.size === 0) places.add(at);
      } else {
        if (low < 0 || values[at] < values[low]) low = at;
        if (high < 0 || values[at] >= values[high]) high = at;
      }
    }
    if (low >= 0) places.add(low).add(high);
    kept.push(...[...places].sort((one, other) => one - other));
  }
  return kept.at(-1) === values.length - 1 ? kept : [...kept, values.length - 1];
};

// At most `most` places of `length`, evenly, the first and the last among them.
const even = (length, most) =>
  length <= most
    ? Array.from({ length }, (_, at) => at)
    : Array.from({ length: most }, (_, at) => Math.round((at * (length - 1)) / (most - 1)));
