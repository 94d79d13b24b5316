"use strict";
{
  const WAIT_MS = 1000;
  const byId = (id) => document.getElementById(id);
  const printing = matchMedia("print");
  const tables = new Map();
  const figures = new Map();
  const headings = new Map();
  let [quantity, theme, order] = ["score", 0, ""];
  let [log, cursor, follow, paused, failures, known] = ["", "", true, false, 0, []];
  let [last, lastAt, timer, asking] = [null, 0, 0, false];

  const made = (chart) => {
    const place = element("div", { class: "place", role: "img" });
    const beside = element("div");
    const heading = element("h3");
    const whole = element("figure", {}, element("figcaption", {}, heading), place, beside);
    const parts = { whole, place, beside, heading, stamp: "", table: null };
    if (chart.kind === "heads") {
      parts.table = element("table");
      const details = element(
        "details",
        {},
        element("summary", {}, `${capitalized(chart.title)} heads now`),
        element("div", { class: "scroll", tabindex: "0" }, parts.table),
      );
      details.addEventListener("toggle", () => details.open && headTable(parts.table, parts.chart));
      whole.append(details);
    }
    return parts;
  };

  const draw = (chart, section, ends) => {
    if (!figures.has(chart.id)) figures.set(chart.id, made(chart));
    const parts = figures.get(chart.id);
    parts.chart = chart;
    const shown = shownAs(chart, quantity);
    const sources = chart.kind === "heads" ? Object.values(chart.quantities) : chart.series.map((s) => s.table);
    const stamp = JSON.stringify([shown.kind, quantity, theme, ends, sources.map((t) => [t.version, t.key])]);
    if (stamp === parts.stamp) return parts.whole;
    parts.stamp = stamp;
    parts.heading.textContent = capitalized(
      chart.kind === "heads" ? `${chart.title} heads, ${quantity}` : chart.title,
    );
    parts.whole.classList.toggle("wide", shown.kind === "map");
    parts.place.style.setProperty("--height", `${heightOf(shown)}px`);
    parts.place.setAttribute(
      "aria-label",
      `${section.title}, ${chart.title}, over steps; the last values stand below.`,
    );
    if (shown.kind === "map") {
      parts.beside.className = "scale";
      parts.beside.replaceChildren(...scale(shown));
    } else {
      parts.beside.className = "";
      parts.beside.replaceChildren(element("ul", { class: "legend" }, legend(shown)));
    }
    if (parts.table?.closest("details").open) headTable(parts.table, chart);
    parts.waiting = () => (shown.kind === "map" ? mapFigure(shown) : lineFigure(shown, ends));
    return parts.whole;
  };

  const sectionOf = (section, charts) => {
    if (!headings.has(section.id)) {
      const id = `section-${headings.size}`;
      const grid = element("div", { class: "charts" });
      const whole = element("section", { "aria-labelledby": id }, element("h2", { id }, section.title), grid);
      headings.set(section.id, { whole, grid });
    }
    const { whole, grid } = headings.get(section.id);
    if (charts.length !== grid.children.length || charts.some((chart, at) => chart !== grid.children[at])) {
      grid.replaceChildren(...charts);
    }
    return whole;
  };

  const summary = (sections) => {
    const circuits = sections.filter(({ now }) => now !== null);
    byId("now").hidden = circuits.length === 0;
    const value = (table) => table?.columns.get("").at(-1) ?? null;
    const share = (table) => {
      const found = value(table);
      if (found === null) return "not yet";
      if (found >= settings.threshold) return percent(found);
      return element("span", { class: "under" }, percent(found), element("small", {}, `below ${percent(settings.threshold)}`));
    };
    const total = (counts) =>
      counts.length ? String(counts.reduce((sum, table) => sum + (value(table) ?? 0), 0)) : "not yet";
    filledTable(
      byId("summary"),
      ["circuit", ...SHARES, "lost", "risen", "penalty"],
      circuits.map(({ title, now }) => [
        title,
        ...SHARES.map((kind) => share(now.shares[kind])),
        total(now.lost),
        total(now.risen),
        now.penalty === null ? "none" : written(value(now.penalty), false),
      ]),
    );
  };

  // A few at a time, so that the page can be scrolled meanwhile; all of them for print.
  const drawWaiting = (budget_ms) => {
    // The words stand there before the browser has read all of plotly, which comes last.
    if (typeof Plotly === "undefined") return;
    const started = performance.now();
    for (const parts of figures.values()) {
      if (!parts.waiting) continue;
      if (performance.now() - started > budget_ms) {
        requestAnimationFrame(() => drawWaiting(budget_ms));
        return;
      }
      const { data, layout } = parts.waiting();
      parts.waiting = null;
      // The browser asks for print before it has laid the page out for paper; these fit A4.
      if (printing.matches) layout.width = parts.whole.classList.contains("wide") ? 680 : 325;
      Plotly.react(parts.place, data, layout, { displayModeBar: false, responsive: true });
    }
  };

  const show = (budget_ms = 30) => {
    const sections = arrange(tables);
    let ends = [Infinity, -Infinity];
    for (const { steps } of tables.values()) {
      ends = [Math.min(ends[0], steps[0]), Math.max(ends[1], steps.at(-1))];
    }
    summary(sections);
    const wholes = sections.map((section) =>
      sectionOf(section, section.charts.map((chart) => draw(chart, section, ends))),
    );
    // Places are moved only when there are others, so that the focus stays where it is.
    const now = JSON.stringify(sections.map(({ id, charts }) => [id, charts.map((chart) => chart.id)]));
    if (now !== order) byId("sections").replaceChildren(...wholes);
    order = now;
    for (const [id, parts] of figures) {
      if (!parts.whole.isConnected) {
        Plotly.purge(parts.place);
        figures.delete(id);
      }
    }
    drawWaiting(budget_ms);
  };

  const tell = () => {
    const state = failures > 1 ? "lost" : (last?.state ?? "connecting");
    const word = {
      lost: "No connection",
      connecting: "Connecting",
      empty: "Nothing logged yet",
      running: "Running",
      silent: "Silent",
      finished: "Finished",
    }[state];
    if (byId("word").textContent !== word) byId("word").textContent = word;
    byId("word").dataset.state = state;
    byId("empty").hidden = state !== "empty";
    let step = -1;
    for (const { steps } of tables.values()) step = Math.max(step, steps.at(-1));
    const parts = [];
    if (step >= 0) parts.push(`step ${step}`);
    if (last?.age_s !== undefined) {
      parts.push(`last written ${duration(last.age_s + (performance.now() - lastAt) / 1000)} ago`);
    }
    if (last?.log !== undefined && last.log !== ".") parts.push(last.log);
    if (state === "lost") parts.push("circuitkeep watch does not answer; still trying");
    if (paused) parts.push("this page is paused");
    byId("detail").textContent = parts.join(" · ");
    const name = document.querySelector("h1").textContent;
    document.title = step >= 0 ? `${word}, step ${step}: ${name}` : `${word}: ${name}`;
  };

  const choices = (logs) => {
    const sorted = [...logs].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
    if (sorted.join("\n") === known.join("\n")) return;
    // A run that starts while the page is open is followed, unless another one was chosen.
    const fresh = known.length ? logs.find((name) => !known.includes(name)) : undefined;
    known = sorted;
    if (follow && fresh !== undefined) log = fresh;
    byId("choice").hidden = logs.length < 2;
    byId("log").replaceChildren(
      element("option", { value: "" }, "the newest"),
      ...sorted.map((name) => element("option", { value: name }, name)),
    );
    byId("log").value = follow ? "" : log;
  };

  const ask = async () => {
    clearTimeout(timer);
    if (asking || paused || document.hidden) return;
    asking = true;
    try {
      const wanted = new URLSearchParams({ log, since: cursor });
      const answer = await fetch(`data?${wanted}`, { signal: AbortSignal.timeout(20000) });
      if (!answer.ok) throw new Error(`the server says ${answer.status}`);
      const news = await answer.json();
      [last, lastAt, failures] = [news, performance.now(), 0];
      follow ||= !news.logs.includes(log);
      if (follow || log === (news.log ?? "")) {
        cursor = news.cursor;
        log = news.log ?? "";
        merge(tables, news);
        choices(news.logs);
        if (news.reset || news.tables.length) show();
      }
    } catch (error) {
      failures += 1;
      if (!["TypeError", "TimeoutError", "AbortError"].includes(error.name)) console.error(error);
    }
    asking = false;
    timer = setTimeout(ask, Math.min(WAIT_MS * 2 ** failures, 10 * WAIT_MS));
    tell();
  };

  for (const radio of document.querySelectorAll("[name=quantity]")) {
    radio.addEventListener("change", () => {
      quantity = radio.value;
      show();
    });
    if (radio.checked) quantity = radio.value;
  }
  byId("log").addEventListener("change", () => {
    const chosen = byId("log").value;
    follow = chosen === "";
    log = chosen;
    ask();
  });
  byId("pause").addEventListener("click", () => {
    paused = !paused;
    byId("pause").textContent = paused ? "Go on" : "Pause";
    byId("pause").setAttribute("aria-pressed", String(paused));
    tell();
    ask();
  });
  document.addEventListener("visibilitychange", ask);
  for (const query of [matchMedia("(prefers-color-scheme: dark)"), printing]) {
    query.addEventListener("change", () => {
      theme += 1;
      show(Infinity);
    });
  }
  addEventListener("DOMContentLoaded", () => drawWaiting(30));
  tell();
  ask();
}
