"use strict";
/* What is known of one node: figures, texts, what flows into it and out of it. */

const LISTED = 10; // inputs and outputs that are told
const nodeButton = (place, text = nameOf(place)) =>
  button(text, { class: "name" }, () => choose(place));
const mark = (place) => element("i", { class: `mark ${nodes[place].kind}`, "aria-hidden": "true" });

const factsOf = (place) => {
  const { kind, value, bias, activation, influence, probability } = nodes[place];
  const facts = [];
  if (kind === "logit") facts.push(["probability", percent(probability)]);
  else facts.push(["influence", `${percent(influence)}, ${rankOf(place)}`]);
  if (kind === "feature") facts.push(["activation", number(activation)]);
  if (kind === "logit") facts.push(["logit over mean", signed(value)]);
  if (kind === "feature" || kind === "logit") {
    facts.push(["flows in", `${signed(value - bias)}, and ${signed(bias)} from biases`]);
  }
  return facts;
};
const byInfluence = nodes
  .flatMap(({ kind }, place) => (kind === "logit" ? [] : [place]))
  .sort((one, other) => nodes[other].influence - nodes[one].influence);
const rankOf = (place) => `${byInfluence.indexOf(place) + 1} of ${byInfluence.length}`;

const EXPLAINED = {
  embedding: "The token's embedding.",
  error: "What the MLP adds here beyond the features and biases.",
  logit: "A token that may come next.",
};

const edgeRow = (edge, other) => {
  const heads = data.heads[edge];
  return element(
    "tr",
    {},
    element(
      "th",
      { scope: "row" },
      mark(other),
      nodeButton(other),
      heads
        ? element("small", {}, heads.map(([name, part]) => `${name} ${signed(part)}`).join(", "))
        : "",
    ),
    element("td", { class: `figure ${weight[edge] > 0 ? "more" : "less"}` }, signed(weight[edge])),
    element("td", { class: "figure" }, percent(share[edge])),
  );
};
const edgeTable = (title, edges, ends, whose) => {
  const listed = [...edges].sort((one, other) => share[other] - share[one]);
  if (listed.length === 0) return [element("h4", {}, title), element("p", { class: "quiet" }, "None in this graph.")];
  return [
    element("h4", {}, title),
    element(
      "table",
      {},
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          element("th", { scope: "col" }, "node"),
          element("th", { scope: "col", class: "figure" }, "adds"),
          element("th", { scope: "col", class: "figure" }, whose),
        ),
      ),
      element("tbody", {}, listed.slice(0, LISTED).map((edge) => edgeRow(edge, ends[edge]))),
    ),
    listed.length > LISTED
      ? element("p", { class: "quiet" }, `and ${listed.length - LISTED} weaker ones`)
      : "",
  ];
};

const wordList = (title, pairs) =>
  pairs && pairs.length
    ? element(
        "p",
        {},
        element("span", { class: "quiet" }, `${title} `),
        pairs.map(([word, value], at) => [
          at ? " " : "",
          element("span", { class: "word", title: signed(value) }, word),
        ]),
      )
    : "";
const contextLine = ({ words: texts, activations }) => {
  const most = Math.max(...activations, 1e-9);
  return element(
    "p",
    { class: "context" },
    texts.map((text, at) =>
      element(
        "span",
        activations[at] > 0
          ? { class: "lit", title: number(activations[at]), "--v": `${Math.round((60 * activations[at]) / most)}%` }
          : {},
        text.replaceAll("␣", " "),
      ),
    ),
  );
};
const readingParts = (place) => {
  const { contexts, promoted, suppressed } = readingOf(place);
  return [
    wordList("promotes", promoted),
    wordList("suppresses", suppressed),
    ...(contexts
      ? [
          element("h4", {}, "Where it is most active"),
          ...(contexts.length
            ? contexts.map(contextLine)
            : [element("p", { class: "quiet" }, "Nowhere in the texts that were searched.")]),
        ]
      : []),
  ];
};

const reasonParts = ({ score: over, query, key }) => {
  const listed = (parts) => parts.map(([name, part]) => `${name} ${signed(part)}`).join(", ");
  return [
    element("small", {}, `as it scores ${signed(over)} over the other keys`),
    element("small", {}, `asked for by ${listed(query)}`),
    element("small", {}, `offered by ${listed(key)}`),
  ];
};
const headParts = (place) => {
  const listed = data.head_edges[place];
  if (!listed || listed.length === 0) return [];
  const token = (pos) => `“${words[pos]}” (${pos})`;
  return [
    element("h4", {}, "What heads bring it"),
    element(
      "table",
      {},
      element(
        "tbody",
        {},
        listed.map(({ head, query, key, value, attention, reason }) =>
          element(
            "tr",
            {},
            element(
              "th",
              { scope: "row" },
              head,
              element(
                "small",
                {},
                `at ${token(query)}, ${percent(attention)} of its attention on ${token(key)}`,
              ),
              reason ? reasonParts(reason) : "",
            ),
            element("td", { class: `figure ${value > 0 ? "more" : "less"}` }, signed(value)),
          ),
        ),
      ),
    ),
  ];
};

const pathParts = (place) => {
  const end = nodes[place].kind === "logit" ? place : view.logit;
  if (end === null) return [];
  const found = pathOf(place);
  const title = element("h4", {}, `Strongest path to ${nameOf(end)}`);
  if (found === null) return [title, element("p", { class: "quiet" }, "None in this graph.")];
  const steps = [source[found.edges[0]], ...found.edges.map((edge) => target[edge])];
  return [
    title,
    element(
      "ol",
      { class: "path" },
      steps.map((step, at) =>
        element(
          "li",
          {},
          mark(step),
          step === place ? element("strong", {}, nameOf(step)) : nodeButton(step),
          at
            ? element(
                "span",
                { class: "quiet" },
                ` ${signed(weight[found.edges[at - 1]])}, ${percent(share[found.edges[at - 1]])} of its inputs`,
              )
            : "",
        ),
      ),
    ),
    element(
      "p",
      { class: "quiet" },
      `Its shares' product is ${(100 * found.product).toPrecision(2)}%. `,
      button("Pin the path", {}, () => pin(steps)),
    ),
  ];
};
const pathOf = (place) =>
  nodes[place].kind === "logit" ? strongestPath(null, place) : strongestPath(place, view.logit);

let told = null;
const tell = (anew = false) => {
  const place = looked() ?? told;
  if (place === null || (place === told && !anew)) return;
  told = place;
  byId("node-name").replaceChildren(mark(place), nameOf(place));
  const pinned = view.pinned.includes(place);
  byId("node").replaceChildren(
    element("p", { class: "quiet" }, EXPLAINED[nodes[place].kind] ?? ""),
    element("dl", {}, factsOf(place).flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])),
    element(
      "p",
      {},
      button(pinned ? "Remove from the subgraph" : "Pin to the subgraph", { id: "pin" }, () =>
        pinned ? unpin(place) : pin([place]),
      ),
    ),
    ...readingParts(place),
    ...edgeTable("Strongest inputs", inputs[place], source, "of its inputs"),
    ...(nodes[place].kind === "logit"
      ? headParts(place)
      : edgeTable("Strongest outputs", outputs[place], target, "of theirs")),
    ...pathParts(place),
  );
};
