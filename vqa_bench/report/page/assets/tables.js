// Tables that are sorted by choosing a column's head: first falling, then rising, then as they were.

function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const isText = original.some((row) => row.cells[column].dataset.sort !== undefined && !isNumber(row.cells[column]));
      const turns = isText ? [null, "ascending", "descending"] : [null, "descending", "ascending"];
      const after = turns[(turns.indexOf(before) + 1) % 3];
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      if (after !== null) head.setAttribute("aria-sort", after);
      body.append(...(after === null ? original : sorted(original, column, after === "ascending" ? 1 : -1)));
    });
  });
}

const isNumber = (cell) => cell.dataset.sort !== undefined && !Number.isNaN(Number(cell.dataset.sort));

/** Rows by a column; those without a value come last both ways. */
function sorted(rows, column, direction) {
  const value = (row) => row.cells[column].dataset.sort;
  const compare = (a, b) => {
    if (value(a) === undefined || value(b) === undefined) return (value(a) === undefined) - (value(b) === undefined);
    const bothNumbers = isNumber(a.cells[column]) && isNumber(b.cells[column]);
    return direction * (bothNumbers ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b)));
  };
  return [...rows].sort(compare);
}

document.querySelectorAll("table.sortable").forEach(sortable);
