"use strict";
// Tables sort by the column whose heading is pressed: numbers by data-sort, names by their text.
for (const table of document.querySelectorAll("table.sorts")) {
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
  };
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((first, second) => {
        const [a, b] = [value(first, column), value(second, column)];
        // Figures that are missing stay last.
        if (typeof a === "number") {
          if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
          return up ? a - b : b - a;
        }
        return up ? a.localeCompare(b) : b.localeCompare(a);
      });
      body.append(...rows);
    });
  });
}
