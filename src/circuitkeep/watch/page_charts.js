"use strict";
/* The charts as plotly figures, and the words that stand beside them. */

const MAX_POINTS = 600;
const MAX_COLUMNS = 200;
const MAX_LINES = 8;
const DASHES = ["solid", "dash", "dot", "dashdot"];
const STROKES = { solid: "none", dash: "5 3", dot: "1.5 2.5", dashdot: "5 2.5 1.5 2.5" };
const TOPS = [0.1, 0.25, 0.5, 1];

const settings = JSON.parse(document.getElementById("data").textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Plotly reads labels as markup of its own.
const label = (text, most = 36) => {
  const half = most / 2 - 1;
  const short = text.length > most ? `${text.slice(0, half)}…${text.slice(-half)}` : text;
  return short.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
};
const withMinus = (text) => text.replaceAll("-", "−");
const percent = (share) => withMinus(`${Math.round(100 * share) + 0}%`);
const figure = (value) =>
  withMinus(
    Number.isInteger(value)
      ? String(value)
      : Math.abs(value) < 0.001 || Math.abs(value) >= 1e6
        ? value.toExponential(1)
        : Math.abs(value) >= 1000
          ? String(Math.round(value))
          : value.toPrecision(3),
  );
const written = (value, share) =>
  value === null || value === undefined ? "no number" : share ? percent(value) : figure(value);

// What a chart shows: lines, or for many heads a map.
const shownAs = (chart, quantity) => {
  if (chart.kind !== "heads") return chart;
  const table = chart.quantities[quantity];
  const share = quantity === "retention";
  if (table === undefined) return { ...chart, kind: "lines", series: [], share };
  if (table.columns.size > MAX_LINES) return { ...chart, kind: "map", table, share };
  const series = [...table.columns].map(([name, values]) => ({ name, table, steps: table.steps, values }));
  return { ...chart, kind: "lines", series, share, tozero: true };
};

const styleOf = ({ style }, at) => ({
  colour: style ?? `--line-${at % MAX_LINES}`,
  // One on for every round of the colours, so that no two of 32 are alike.
  dash: DASHES[(at + Math.floor(at / MAX_LINES)) % DASHES.length],
});

const layoutOf = (range, more) => ({
  autosize: true,
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: {
    family: getComputedStyle(document.documentElement).fontFamily,
    size: 12,
    color: colour("--muted"),
  },
  hoverlabel: {
    bgcolor: colour("--paper"),
    bordercolor: colour("--muted"),
    font: { color: colour("--ink") },
    align: "left",
  },
  margin: { l: 46, r: 8, t: 8, b: 40 },
  showlegend: false,
  dragmode: false,
  hovermode: "x unified",
  ...more,
  xaxis: {
    title: { text: "step", standoff: 6 },
    range,
    fixedrange: true,
    zeroline: false,
    showgrid: false,
    ticks: "outside",
    tickcolor: colour("--rule"),
    nticks: 6,
    ...more.xaxis,
  },
  yaxis: {
    fixedrange: true,
    zeroline: false,
    gridcolor: colour("--rule"),
    automargin: true,
    nticks: 6,
    ...more.yaxis,
  },
});

const lineFigure = (chart, ends) => {
  const data = chart.series.map((series, at) => {
    const places = thinned(series.values, MAX_POINTS);
    const { colour: name, dash } = styleOf(series, at);
    return {
      type: "scatter",
      mode: places.length > 20 ? "lines" : "lines+markers",
      name: label(series.name),
      x: places.map((place) => series.steps[place]),
      y: places.map((place) => series.values[place]),
      line: { color: colour(name), width: 2, dash, shape: chart.count ? "hv" : "linear" },
      marker: { size: 5, color: colour(name) },
      hovertemplate: chart.share ? "%{y:.0%}" : "%{y:.4~g}",
    };
  });
  const all = data.flatMap(({ y }) => y).filter((value) => value !== null);
  const pad = 0.03 * (ends[1] - ends[0] || 1);
  const yaxis = { rangemode: chart.tozero ? "tozero" : "normal" };
  const more = { yaxis };
  if (chart.share) {
    const [low, high] = [Math.min(0, ...all), Math.max(1, ...all)];
    Object.assign(yaxis, {
      tickformat: ".0%",
      range: [low - (low < 0 ? 0.05 * (high - low) : 0), high + 0.06 * (high - low)],
    });
    more.shapes = [
      {
        type: "line",
        xref: "paper",
        x0: 0,
        x1: 1,
        y0: settings.threshold,
        y1: settings.threshold,
        layer: "below",
        line: { color: colour("--named"), width: 1 },
      },
    ];
    more.margin = { l: 46, r: 36, t: 8, b: 40 };
    more.annotations = [
      {
        text: percent(settings.threshold),
        xref: "paper",
        x: 1,
        y: settings.threshold,
        xanchor: "left",
        yanchor: "middle",
        showarrow: false,
        font: { size: 11, color: colour("--named") },
      },
    ];
  }
  if (chart.count) {
    const top = Math.max(4, ...all);
    Object.assign(yaxis, { range: [-0.04 * top, 1.06 * top], tick0: 0, dtick: Math.ceil(top / 4) });
  }
  return { data, layout: layoutOf([ends[0] - pad, ends[1] + pad], more) };
};

// The score that the darkest colour stands for: the first round one that no score exceeds.
const topOf = (table, share) => {
  if (share) return 1;
  let highest = 0;
  for (const values of table.columns.values())
    for (const value of values) if (value > highest) highest = value;
  return TOPS.find((top) => top >= highest) ?? 1;
};

const mapFigure = ({ table, share }) => {
  const places = even(table.steps.length, MAX_COLUMNS);
  const steps = places.map((place) => table.steps[place]);
  const half = steps.length > 1 ? (steps.at(-1) - steps[0]) / (steps.length - 1) / 2 : 0.5;
  const data = [
    {
      type: "heatmap",
      x: steps,
      y: [...table.columns.keys()].map((name) => label(name, 14)),
      // Plotly draws typed arrays without looking at every cell for text; NaN is a gap.
      z: [...table.columns.values()].map((values) =>
        Float32Array.from(places, (place) => values[place] ?? NaN),
      ),
      zmin: 0,
      zmax: topOf(table, share),
      colorscale: [0, 1, 2, 3, 4].map((stop) => [stop / 4, colour(`--heat-${stop}`)]),
      showscale: false,
      hoverongaps: false,
      hovertemplate: `%{y}, step %{x}: %{z:${share ? ".0%" : ".2f"}}<extra></extra>`,
    },
  ];
  const layout = layoutOf([steps[0] - half, steps.at(-1) + half], {
    hovermode: "closest",
    yaxis: { type: "category", autorange: "reversed", showgrid: false, nticks: 40 },
  });
  return { data, layout };
};

const heightOf = (chart) => {
  if (chart.kind !== "map") return 220;
  const rows = chart.table.columns.size;
  return Math.round(rows * Math.max(4, Math.min(18, 640 / rows))) + 44;
};
