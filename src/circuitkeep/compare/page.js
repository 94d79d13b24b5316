"use strict";
{
  const charts = JSON.parse(document.getElementById("data").textContent);
  const places = [...document.querySelectorAll("[data-chart]")];

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

  const drawOne = (place) => {
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
    const { data, layout, frames } = charts[Number(place.dataset.chart)];
    // A chart with frames shows the cells of the one that its slider stands at.
    const shown = frames ? [{ ...data[0], ...frames[Number(place.dataset.frame)].data[0] }] : data;
    Plotly.react(place, themed(shown, style), themed({ ...common, ...layout }, style), {
      responsive: layout.width === undefined,
      displaylogo: false,
      modeBarButtons: [["toImage"]],
      toImageButtonOptions: { format: "svg", filename: `figure-${place.dataset.chart}` },
    });
  };
  const draw = () => places.forEach(drawOne);

  for (const slider of document.querySelectorAll("[data-frames]")) {
    const place = places.find(({ dataset }) => dataset.chart === slider.dataset.frames);
    const move = () => {
      const { name } = charts[Number(slider.dataset.frames)].frames[slider.valueAsNumber];
      place.dataset.frame = slider.value;
      slider.nextElementSibling.textContent = name;
      slider.setAttribute("aria-valuetext", name);
    };
    move();
    slider.addEventListener("input", () => {
      move();
      drawOne(place);
    });
  }

  draw();
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", draw);
  }
}
