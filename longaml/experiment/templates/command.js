"use strict";
/* Tables of a report: a click on a heading sorts, a field above a long table filters. */
(() => {
  const LONG = 8; /* rows from which a table gets a field to filter by */
  const EMPTY = new Set(["", "–"]);
  const NUMBER = /^(?:[≤<>]|F)?\s*([+\-−]?(?:\d[\d,]*)(?:\.\d+)?(?:e[+\-]?\d+)?)/i;

  const numberIn = (text) => {
    const found = NUMBER.exec(text);
    return found ? Number(found[1].replaceAll(",", "").replace("−", "-")) : NaN;
  };

  const textOf = (row, column) => row.cells[column].textContent.trim();

  const compared = (rows, column) => {
    const known = rows.map((row) => textOf(row, column)).filter((text) => !EMPTY.has(text));
    if (known.every((text) => !Number.isNaN(numberIn(text)))) {
      return (a, b) => numberIn(a) - numberIn(b);
    }
    return (a, b) => a.localeCompare(b, undefined, { numeric: true });
  };

  const sorted = (rows, column, direction) => {
    const order = compared(rows, column);
    return [...rows].sort((one, other) => {
      const a = textOf(one, column);
      const b = textOf(other, column);
      if (EMPTY.has(a) || EMPTY.has(b)) return EMPTY.has(a) - EMPTY.has(b); /* dashes last */
      return direction * order(a, b);
    });
  };

  const makeSortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...sorted([...body.rows], column, up ? 1 : -1));
      });
    });
  };

  const makeFilterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    if (rows.length <= LONG) return;
    const label = document.createElement("label");
    const field = document.createElement("input");
    const count = document.createElement("output");
    label.className = "filter";
    field.type = "search";
    label.append("Show rows with ", field, count);
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      let shown = 0;
      rows.forEach((row) => {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        shown += row.hidden ? 0 : 1;
      });
      count.textContent = wanted ? `${shown} of ${rows.length} rows` : "";
    });
    table.closest(".table").before(label);
  };

  document.querySelectorAll("table").forEach((table) => {
    makeSortable(table);
    makeFilterable(table);
  });
})();
