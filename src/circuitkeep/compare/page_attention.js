"use strict";
/* Attention on a prompt of the user's: a head in two models side by side, and the difference. */

if (data.attention) {
  const { models, heads, prompts } = data.attention;
  const byId = (id) => document.getElementById(`attention-${id}`);
  const [promptOf, headOf, leftOf, rightOf] = ["prompt", "head", "left", "right"].map(byId);
  const squares = ["left", "right", "difference"].map((side) => byId(`${side}-map`));
  // The query and key that the sentence tells of; null for the last query and its best key.
  let cell = null;

  const decoded = new Map();
  const patterns = (prompt, model) => {
    const text = prompts[prompt].patterns[model];
    if (!decoded.has(text)) {
      decoded.set(
        text,
        Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)),
      );
    }
    return decoded.get(text);
  };
  const count = () => prompts[promptOf.value].tokens.length;
  const attention = (model, query, key) => {
    const pairs = (count() * (count() + 1)) / 2;
    const place = Number(headOf.value) * pairs + (query * (query + 1)) / 2 + key;
    return patterns(Number(promptOf.value), Number(model))[place] / 255;
  };
  const chosen = () => [leftOf.value, rightOf.value].map(Number);
  const difference = (query, key) => {
    const [left, right] = chosen().map((model) => attention(model, query, key));
    return right - left;
  };

  const number = (value) => value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");
  const signed = (value) => (value > 0 ? "+" : "") + number(value);
  const token = (position) => `“${prompts[promptOf.value].tokens[position]}” (${position})`;
  // Plotly reads texts as markup of its own.
  const literal = (text) =>
    text.replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);

  const square = (value) =>
    Array.from({ length: count() }, (_, query) =>
      Array.from({ length: count() }, (__, key) => (key <= query ? value(query, key) : null)),
    );
  // Around the cell that the sentence tells of.
  const frame = () => {
    const [query, key] = at();
    const edges = { x0: key - 0.5, x1: key + 0.5, y0: query - 0.5, y1: query + 0.5 };
    return [{ type: "rect", ...edges, line: { color: "var(--named)", width: 2 } }];
  };
  const at = () => {
    if (cell !== null) return cell;
    const query = count() - 1;
    const values = Array.from({ length: count() }, (_, key) => attention(rightOf.value, query, key));
    return [query, values.indexOf(Math.max(...values))];
  };

  const say = () => {
    const [query, key] = at();
    const [left, right] = chosen();
    const said = [left, right].map((model) => number(attention(model, query, key)));
    byId("said").textContent =
      `${token(query)} pays ${said[0]} of its attention to ${token(key)} in ${models[left]}, ` +
      `${said[1]} in ${models[right]}.`;
  };

  const drawAttention = () => {
    const [left, right] = chosen();
    const { chart, difference: apart } = prompts[promptOf.value];
    const values = [
      (query, key) => attention(left, query, key),
      (query, key) => attention(right, query, key),
      difference,
    ];
    const limit = Math.max(0.1, ...square(difference).flat().map(Math.abs));
    squares.forEach((place, side) => {
      const last = side === 2;
      const base = last ? apart : chart;
      const z = square(values[side]);
      const text = z.map((row, query) =>
        row.map((value, key) =>
          value === null
            ? ""
            : `${literal(token(query))} to ${literal(token(key))}: ${(last ? signed : number)(value)}`,
        ),
      );
      const scale = last ? { zmin: -limit, zmax: limit } : {};
      drawChart(place, {
        name: `attention-${heads[headOf.value]}-${["left", "right", "difference"][side]}`,
        data: [{ ...base.data[0], ...scale, z, text }],
        layout: { ...base.layout, shapes: frame() },
      });
    });
    const name = heads[headOf.value];
    byId("left-name").textContent = `${name} in ${models[left]}`;
    byId("right-name").textContent = `${name} in ${models[right]}`;
    byId("difference-name").textContent = "Right minus left";
    byId("least").textContent = number(-limit);
    byId("most").textContent = signed(limit);
    say();
  };

  for (const list of [promptOf, headOf, leftOf, rightOf]) {
    list.addEventListener("input", () => {
      if (list === promptOf) cell = null;
      drawAttention();
    });
  }
  const choose = (query, key) => {
    const last = count() - 1;
    const to = Math.min(last, Math.max(0, query));
    cell = [to, Math.min(to, Math.max(0, key))];
    drawAttention();
  };
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  byId("squares").addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const [query, key] = at();
    choose(query + step[0], key + step[1]);
  });

  drawings.push(drawAttention);
  drawAttention();
  for (const place of squares) {
    place.on("plotly_click", ({ points: [{ x, y }] }) => choose(y, x));
  }

  // A head of a score map opens here, in the model of that map.
  const open = (name, model) => {
    const place = heads.indexOf(name);
    if (place < 0) {
      byId("said").textContent = `The page holds no patterns of ${name}.`;
      return;
    }
    headOf.value = String(place);
    if (model > 0) rightOf.value = String(model);
    drawAttention();
    document.getElementById("attention").scrollIntoView();
    headOf.focus({ preventScroll: true });
  };
  for (const place of document.querySelectorAll("[data-model]")) {
    place.classList.add("opens");
    place.on("plotly_click", ({ points: [{ x, y }] }) =>
      // Of a map with a slider the frames are the models.
      open(`L${y}H${x}`, Number(place.dataset.frame ?? place.dataset.model)),
    );
  }
}
