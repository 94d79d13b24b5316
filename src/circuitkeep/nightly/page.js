"use strict";
{
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const STROKES = { solid: "none", dash: "5 3", dot: "1.5 2.5", dashdot: "5 2.5 1.5 2.5" };
  // What is wrong: failed (x), fell or drifts.
  const SIGNS = { x: "x-thin", f: "triangle-down-open", d: "triangle-down-open" };
  const { charts, ends } = JSON.parse(document.getElementById("data").textContent);
  const DAY_MS = 24 * 3600 * 1000;
  const days = (Date.parse(ends[1]) - Date.parse(ends[0])) / DAY_MS;
  const places = [...document.querySelectorAll("[data-chart]")];
  const printing = matchMedia("print");
  const select = document.getElementById("checkpoint");
  const only = document.getElementById("only");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Plotly reads labels as markup of its own.
  const label = (text) =>
    (text.length > 36 ? `${text.slice(0, 17)}…${text.slice(-17)}` : text)
      .replaceAll("&", "&amp;")
      .replaceAll("<", "&lt;")
      .replaceAll(">", "&gt;");
  // One on for every round of the colours, so that no two of 32 are alike.
  const styleOf = ({ colour }) => ({
    name: `--line-${colour % 8}`,
    dash: DASHES[(colour + Math.floor(colour / 8)) % DASHES.length],
  });
  const shownLines = (chart) =>
    chart.lines.filter(({ name }) => !select || select.value === "" || select.value === name);
  const faded = (colour) =>
    `rgba(${[1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)).join()},0.16)`;

  const bands = (line, colour) => {
    const bound = { type: "scatter", mode: "lines", x: line.time, line: { width: 0 }, hoverinfo: "skip" };
    return [
      { ...bound, y: line.low },
      { ...bound, y: line.high, fill: "tonexty", fillcolor: faded(colour) },
      {
        type: "scatter",
        mode: "lines",
        x: line.time,
        y: line.baseline,
        line: { color: css("--muted"), width: 1.2, dash: "dot" },
        name: "baseline",
        hovertemplate: "%{y:.4~g}",
      },
    ];
  };

  const traces = (chart, lines) =>
    lines.flatMap((line) => {
      const { name, dash } = styleOf(line);
      const colour = css(name);
      const wrong = [...line.state].flatMap((state, at) => (state in SIGNS ? [[at, SIGNS[state]]] : []));
      const main = {
        type: "scatter",
        mode: line.time.length > 40 ? "lines" : "lines+markers",
        name: label(line.name),
        x: line.time,
        y: line.value,
        line: { color: colour, width: 2, dash, shape: chart.counted ? "hv" : "linear" },
        marker: { size: 5, color: colour },
        hovertemplate: "%{y:.4~g}",
        // Among many lines those that ended badly are seen.
        opacity: lines.length > 3 && !(line.state.at(-1) in SIGNS) ? 0.45 : 1,
      };
      const marks = {
        type: "scatter",
        mode: "markers",
        x: wrong.map(([at]) => line.time[at]),
        y: wrong.map(([at]) => line.value[at]),
        marker: {
          symbol: wrong.map(([, symbol]) => symbol),
          size: 9,
          color: css("--named"),
          line: { width: 2, color: css("--named") },
        },
        hoverinfo: "skip",
      };
      const band = lines.length === 1 && !chart.counted ? bands(line, colour) : [];
      return [...band, main, ...(wrong.length ? [marks] : [])];
    });

  const layout = (chart, lines) => {
    const all = lines
      .flatMap((line) => (lines.length === 1 ? [line.value, line.low, line.high] : [line.value]).flat())
      .filter((value) => value !== null);
    let [low, high] = [Math.min(...all), Math.max(...all)];
    if (!all.length) [low, high] = [chart.threshold, chart.threshold];
    const span = high - low || Math.abs(high) || 1;
    const near = chart.threshold >= low - span && chart.threshold <= high + span;
    if (near) [low, high] = [Math.min(low, chart.threshold), Math.max(high, chart.threshold)];
    const pad = 0.07 * (high - low || Math.abs(high) || 1);
    const line = { type: "line", layer: "below" };
    const restarts = [...new Set(lines.flatMap(({ restarts }) => restarts))];
    return {
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: {
        family: getComputedStyle(document.documentElement).fontFamily,
        size: 12,
        color: css("--muted"),
      },
      hoverlabel: {
        bgcolor: css("--paper"),
        bordercolor: css("--muted"),
        font: { color: css("--ink") },
        align: "left",
      },
      margin: { l: 46, r: 8, t: 8, b: 36 },
      showlegend: false,
      dragmode: false,
      hovermode: "x unified",
      xaxis: {
        type: "date",
        range: ends,
        fixedrange: true,
        zeroline: false,
        showgrid: false,
        ticks: "outside",
        tickcolor: css("--rule"),
        tickangle: 0,
        nticks: 5,
        // Nights have no hours.
        ...(days < 60 ? { dtick: Math.ceil(days / 5) * DAY_MS, tickformat: "%-d %b" } : {}),
      },
      yaxis: {
        range: [low - pad, high + pad],
        fixedrange: true,
        zeroline: false,
        gridcolor: css("--rule"),
        automargin: true,
        nticks: 6,
        ...(chart.counted ? { tickformat: "d", dtick: Math.max(1, Math.ceil((high - low) / 4)) } : {}),
      },
      shapes: [
        ...(near
          ? [
              {
                ...line,
                xref: "paper",
                x0: 0,
                x1: 1,
                y0: chart.threshold,
                y1: chart.threshold,
                line: { color: css("--named"), width: 1.2, dash: "dash" },
              },
            ]
          : []),
        ...restarts.map((time) => ({
          ...line,
          yref: "paper",
          y0: 0,
          y1: 1,
          x0: time,
          x1: time,
          line: { color: css("--muted"), width: 1 },
        })),
      ],
    };
  };

  const draw = (place) => {
    const chart = charts[Number(place.dataset.chart)];
    const lines = shownLines(chart);
    const figure = layout(chart, lines);
    // The browser asks for print before it has laid the page out for paper; this fits A4.
    if (printing.matches) figure.width = 325;
    Plotly.react(place, traces(chart, lines), figure, { displayModeBar: false, responsive: true });
    place.dataset.drawn = "";
  };

  // Only what is near the window is drawn, so that a long page is there at once.
  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting && !("drawn" in target.dataset)) draw(target);
      }
    },
    { rootMargin: "400px" },
  );

  const choose = () => {
    for (const place of places) {
      const chart = charts[Number(place.dataset.chart)];
      const lines = shownLines(chart);
      const figure = place.closest("figure");
      const wrong = lines.some(({ state }) => state.at(-1) in SIGNS);
      figure.hidden = lines.length === 0 || (only.checked && !wrong);
      for (const item of figure.querySelectorAll("[data-line]")) {
        item.hidden = !lines.includes(chart.lines[Number(item.dataset.line)]);
      }
      delete place.dataset.drawn;
      near.unobserve(place);
      near.observe(place);
    }
    for (const section of document.querySelectorAll(".circuit")) {
      section.hidden = !section.querySelector("figure:not([hidden])");
    }
    document.getElementById("nothing").hidden = document.querySelector(".circuit:not([hidden])") !== null;
  };

  for (const place of places) {
    for (const item of place.parentElement.querySelectorAll("[data-line]")) {
      const { name, dash } = styleOf(charts[Number(place.dataset.chart)].lines[Number(item.dataset.line)]);
      const line = item.querySelector("line");
      line.style.stroke = `var(${name})`;
      line.setAttribute("stroke-dasharray", STROKES[dash]);
    }
  }
  document.getElementById("controls").hidden = false;
  select?.addEventListener("change", choose);
  only.addEventListener("change", choose);
  choose();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", choose);
  printing.addEventListener("change", () =>
    printing.matches ? places.filter((place) => !place.closest("[hidden]")).forEach(draw) : choose(),
  );
}
