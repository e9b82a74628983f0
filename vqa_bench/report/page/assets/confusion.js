// The table of mistakes: right answers against given ones, for a chosen model.

/** show(set, cell, right, given): what choosing an entry does. */
function confusionTable(show) {
  const setSelect = byId("confusion-set");
  const cellSelect = byId("confusion-cell");
  fill(setSelect, REPORT.sets.map((set, number) => [number, set.dataset]));
  setSelect.parentElement.hidden = REPORT.sets.length < 2;

  const draw = () => {
    const set = Number(setSelect.value);
    const cell = REPORT.sets[set].cells[cellSelect.selectedIndex];
    byId("confusion").replaceChildren(...drawn(cell, (right, given) => show(set, cell, right, given)));
  };
  const chooseSet = () => {
    const { cells } = REPORT.sets[Number(setSelect.value)];
    fill(cellSelect, cells.map((cell) => [cell.cell, cell.title]));
    cellSelect.selectedIndex = firstChoice(cells);
    draw();
  };
  setSelect.addEventListener("change", chooseSet);
  cellSelect.addEventListener("change", draw);
  if (REPORT.sets.length) chooseSet();
}

function drawn(cell, choose) {
  if (cell.confusion === null) return [h("p", {}, "The run did not count its mistakes.")];
  const { labels, counts, left_out } = cell.confusion;
  const totals = counts.map((row) => row.reduce((sum, number) => sum + number, 0));
  const head = h("tr", {}, h("th", {}, "right ↓ given →"), labels.map((label) => h("th", { scope: "col" }, h("span", {}, label))));
  const rows = counts.map((row, right) => {
    const entries = row.map((number, given) => entry(number, totals[right], right === given, [labels[right], labels[given]], choose));
    return h("tr", {}, h("th", { scope: "row" }, labels[right]), entries);
  });
  const table = h("table", { class: "confusion" }, h("thead", {}, head), h("tbody", {}, rows));
  const note = left_out ? [h("p", { class: "notes" }, `The ${labels.length} commonest answers; ${count(left_out)} others are left out.`)] : [];
  return [h("div", { class: "frame", tabindex: 0, role: "region", "aria-label": "Mistakes" }, table), ...note];
}

function entry(number, total, isRight, [right, given], choose) {
  if (number === 0) return h("td");
  const share = number / total;
  const text = `${count(number)} of ${count(total)} with right answer “${right}” were answered “${given}” (${percent(share)})`;
  const button = h("button", { type: "button", title: text, "aria-label": text, click: () => choose(right, given) }, count(number));
  return h("td", { class: isRight ? "right" : "wrong", style: `--share:${(100 * Math.sqrt(share)).toFixed(0)}%` }, button);
}
