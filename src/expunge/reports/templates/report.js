"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const head = table.tHead.rows[table.tHead.rows.length - 1];
  const bodies = () => [...table.tBodies].filter((body) => !("fixed" in body.dataset));
  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    return cell.dataset.v !== undefined
      ? (cell.dataset.v === "" ? null : Number(cell.dataset.v))
      : cell.textContent.trim();
  };
  const sort = (column, ascending) => {
    const sign = ascending ? 1 : -1;
    bodies()
      .map((body, index) => ({ body, index, key: value(body, column) }))
      .sort((a, b) => {
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.index - b.index;
        const order = typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
        return sign * order || a.index - b.index;
      })
      .forEach(({ body }) => table.append(body));
  };
  [...head.cells].forEach((cell, column) => {
    if ("unsorted" in cell.dataset) return;
    const button = document.createElement("button");
    button.type = "button";
    // The button lies over the text: browsers do not repeat a button in the header of the next printed page.
    button.setAttribute("aria-label", `sort by ${cell.getAttribute("aria-label") || cell.textContent.trim()}`);
    cell.append(button);
    button.addEventListener("click", () => {
      const ascending = cell.getAttribute("aria-sort") !== "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(column, ascending);
    });
  });
  const form = table.closest("section").querySelector("form.filter");
  if (!form) continue;
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  const filter = () => {
    const { split, text, leaks } = form.elements;
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const body of bodies()) {
      const content = words.length ? body.textContent.toLowerCase() : "";
      const keep = (!split.value || body.dataset.split === split.value)
        && (!leaks.checked || body.dataset.leaks === "1")
        && words.every((word) => content.includes(word));
      body.hidden = !keep;
      shown += keep;
    }
    form.querySelector("output").textContent = `${shown} of ${bodies().length} records`;
  };
  form.addEventListener("input", filter);
  filter();
}
// Paper has no click: everything folded is opened for it, and folded again afterwards.
const folded = () => document.querySelectorAll("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => { opened = [...folded()]; opened.forEach((d) => { d.open = true; }); });
addEventListener("afterprint", () => { opened.forEach((d) => { d.open = false; }); });
