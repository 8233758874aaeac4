"use strict";
for (const controls of document.querySelectorAll(".controls")) controls.hidden = false;

// Sorting by any column, the first of which are words; returns how to sort once more.
const sortable = (table, words, value) => {
  const order = (a, b) => (isNaN(a) || isNaN(b) || a === "" || b === "" ? a.localeCompare(b) : a - b);
  const headers = [...table.tHead.rows[0].cells];
  const sort = (header, direction) => {
    const column = header.cellIndex;
    const sign = direction === "ascending" ? 1 : -1;
    for (const other of headers) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => sign * order(value(a, column), value(b, column)));
    table.tBodies[0].append(...rows);
  };
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const opposite = { ascending: "descending", descending: "ascending" };
      const first = column < words ? "ascending" : "descending";
      sort(header, opposite[header.getAttribute("aria-sort")] || first);
    });
  });
  return () => {
    const sorted = headers.find((header) => header.hasAttribute("aria-sort"));
    if (sorted) sort(sorted, sorted.getAttribute("aria-sort"));
  };
};
for (const table of document.querySelectorAll("table.sortable"))
  sortable(table, 1, (row, column) => row.cells[column].dataset.sort);

// By substitution: which figure is shown.
for (const table of document.querySelectorAll("table[data-figure]")) {
  const chosen = table.closest("section").querySelector("select");
  const again = sortable(table, 2, (row, column) => {
    const cell = row.cells[column];
    return (cell.querySelector("." + table.dataset.figure) || cell).dataset.sort;
  });
  chosen.addEventListener("change", () => {
    table.dataset.figure = chosen.value;
    table.caption.querySelector("span").textContent = chosen.selectedOptions[0].textContent;
    again();
  });
}

// The gallery: a row is shown where it has every chosen value; a step at a time.
for (const filters of document.querySelectorAll("form")) {
  const section = filters.closest("section");
  const selects = [...filters.querySelectorAll("select")];
  const cards = [...section.querySelectorAll("article")];
  const more = section.querySelector("button[type=button]");
  const step = 48;
  let limit = step;
  const apply = () => {
    const fitting = cards.filter((card) =>
      selects.every(
        ({ value, dataset }) => !value || card.getAttribute("data-" + dataset.filter) === value,
      ),
    );
    for (const card of cards) card.hidden = true;
    for (const card of fitting.slice(0, limit)) card.hidden = false;
    more.hidden = fitting.length <= limit;
    filters.querySelector("output").textContent = `${fitting.length} of ${cards.length} fit`;
  };
  const restart = () => {
    limit = step;
    apply();
  };
  filters.addEventListener("change", restart);
  filters.addEventListener("reset", () => setTimeout(restart));
  filters.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    limit += step;
    apply();
    const next = cards.filter((card) => !card.hidden)[limit - step];
    next.tabIndex = -1; // the button may be gone: go on with the first new row
    next.focus({ preventScroll: true });
  });
  apply();
}
