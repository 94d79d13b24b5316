"use strict";
/* Draws the page's charts in the colours of light, dark or print; sliders and lists choose a frame. */

const data = JSON.parse(document.getElementById("data").textContent);
const places = [...document.querySelectorAll("[data-chart]")];
// What draws itself anew when the colours change.
const drawings = [];

// Charts name colours as the stylesheet does, "var(--ink)"; plotly needs what they stand for now.
const themed = (value, style) => {
  if (typeof value === "string") {
    const variable = /^var\((--[a-z0-9-]+)\)$/.exec(value);
    return variable ? style.getPropertyValue(variable[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map((item) => themed(item, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
};

const drawChart = (place, chart) => {
  const style = getComputedStyle(document.documentElement);
  const common = {
    // Not clear, so that an image saved from the dark page can be read.
    paper_bgcolor: "var(--paper)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style.fontFamily, size: 12.5, color: "var(--muted)" },
    hoverlabel: {
      bgcolor: "var(--paper)",
      bordercolor: "var(--muted)",
      font: { family: style.fontFamily, color: "var(--ink)" },
      align: "left",
    },
  };
  const layout = { ...common, ...chart.layout };
  return Plotly.react(place, themed(chart.data, style), themed(layout, style), {
    responsive: layout.width === undefined,
    displaylogo: false,
    modeBarButtons: [["toImage"]],
    toImageButtonOptions: { format: "svg", filename: chart.name },
  });
};

const drawPlace = (place) => {
  const chart = data.charts[Number(place.dataset.chart)];
  if (!chart.frames) return drawChart(place, chart);
  // A chart with frames shows the cells of the one that its slider or list stands at.
  const { annotations = [], ...cells } = chart.frames[Number(place.dataset.frame)].data[0];
  return drawChart(place, {
    ...chart,
    data: [{ ...chart.data[0], ...cells }, ...chart.data.slice(1)],
    layout: { ...chart.layout, annotations },
  });
};

for (const control of document.querySelectorAll("[data-frames]")) {
  const place = places.find(({ dataset }) => dataset.chart === control.dataset.frames);
  const move = () => {
    place.dataset.frame = control.value;
    if (control.type !== "range") return;
    const { name } = data.charts[Number(control.dataset.frames)].frames[control.valueAsNumber];
    control.nextElementSibling.textContent = name;
    control.setAttribute("aria-valuetext", name);
  };
  move();
  control.addEventListener("input", () => {
    move();
    drawPlace(place);
  });
}

drawings.push(() => places.forEach(drawPlace));
const draw = () => drawings.forEach((each) => each());
draw();
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  matchMedia(query).addEventListener("change", draw);
}
