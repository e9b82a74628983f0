// Which samples are asked for: the state of the form, in the page's address and as rows of the index.

const DEFAULTS = { set: "0", cell: "", type: "", result: "", other: "", answer: "", given: "", order: "", text: "", sample: "" };
const RESULTS = [["", "right and wrong"], ["right", "right"], ["wrong", "wrong"]];
const DIFFERENCES = [["only", "right, unlike"], ["other", "wrong, unlike"], ["differ", "other answer than"]];
const ORDERS = [["", "as in the data set"], ["sure", "most sure first"], ["unsure", "least sure first"]];

/** The state in the address, null where the address holds none. */
function stateOfAddress() {
  if (!location.hash.includes("=")) return null;
  const state = { ...DEFAULTS };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (name in state) state[name] = value;
  return state;
}

function addressOf(state) {
  const changed = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  return `#${new URLSearchParams([["sample", state.sample], ...changed.filter(([name]) => name !== "sample")])}`;
}

/** Fills the form's selects for a set and a cell, and puts the state into them; what cannot be chosen is dropped. */
function fillForm(form, state) {
  const fields = form.elements;
  const set = REPORT.sets[Number(state.set)] ?? REPORT.sets[0];
  fill(fields.set, REPORT.sets.map(({ dataset }, number) => [number, dataset]));
  fields.set.parentElement.hidden = REPORT.sets.length < 2;
  fill(fields.cell, set.cells.map(({ cell, title }) => [cell, title]));
  fill(fields.type, [["", "all"], ...typeOptions(set)]);
  fill(fields.result, RESULTS);
  fill(fields.order, ORDERS);
  const answers = [["", "any"], ...set.answers.map((name) => [name, name])];
  fill(fields.answer, answers);
  fill(fields.given, answers);
  fields.set.value = String(REPORT.sets.indexOf(set));
  fields.cell.value = state.cell;
  if (fields.cell.selectedIndex < 0) fields.cell.selectedIndex = firstChoice(set.cells);
  const others = set.cells.filter(({ cell }) => cell !== fields.cell.value);
  const compared = DIFFERENCES.map(([kind, words]) => ({
    label: `${words} …`,
    options: others.map(({ cell, title }) => [`${kind}:${cell}`, `${words} ${title}`]),
  }));
  fill(fields.other, [["", "no other"], ...(others.length ? compared : [])]);
  for (const name of ["type", "result", "other", "answer", "given", "order"]) {
    fields[name].value = state[name];
    if (fields[name].selectedIndex < 0) fields[name].selectedIndex = 0;
  }
  fields.text.value = state.text;
}

/** The place of the best cell that reads bytes, else of the best: cells rise in accuracy. */
function firstChoice(cells) {
  const reads = cells.map(({ sequence }) => sequence !== null);
  return reads.includes(true) ? reads.lastIndexOf(true) : cells.length - 1;
}

/** Types in their groups; a group with several has an option for all of them. */
function typeOptions(set) {
  const groups = new Map();
  for (const { name, group } of set.types) groups.set(group, [...(groups.get(group) ?? []), name]);
  return [...groups].sort().map(([group, names]) => {
    const single = names.sort().map((name) => [name, words(name)]);
    if (names.length === 1) return single[0];
    return { label: words(group), options: [[`group:${group}`, `all of ${words(group)}`], ...single] };
  });
}

/** The state that the form shows. */
function stateOfForm(form, sample) {
  const state = { ...DEFAULTS, sample };
  for (const name of Object.keys(DEFAULTS)) if (name in form.elements) state[name] = form.elements[name].value;
  return state;
}

/** The rows of the index that a state asks for, in its order. */
async function matching(state) {
  const number = Number(state.set);
  const set = REPORT.sets[number];
  const index = await indexOf(number);
  const cell = set.cells.findIndex(({ cell }) => cell === state.cell);
  const given = index[`given${cell}`];
  const tests = [];
  if (state.type) {
    const asked = set.types.map(({ name, group }) => state.type === name || state.type === `group:${group}`);
    tests.push((row) => asked[index.type[row]]);
  }
  if (state.result) tests.push((row) => (given[row] === index.answer[row]) === (state.result === "right"));
  for (const [name, column] of [["answer", index.answer], ["given", given]]) {
    const place = set.answers.indexOf(state[name]);
    if (state[name]) tests.push((row) => column[row] === place);
  }
  if (state.other) tests.push(comparison(state.other, set, index, given));
  const text = state.text.trim().toLowerCase();
  if (text) {
    const texts = await searchable(number);
    tests.push((row) => texts[row].includes(text));
  }
  const rows = [];
  for (let row = 0; row < index.type.length; row++) if (tests.every((test) => test(row))) rows.push(row);
  const sure = index[`sure${cell}`];
  if (state.order) rows.sort((a, b) => (state.order === "sure" ? sure[b] - sure[a] : sure[a] - sure[b]) || a - b);
  return rows;
}

function comparison(asked, set, index, given) {
  const [kind, ...name] = asked.split(":");
  const other = index[`given${set.cells.findIndex(({ cell }) => cell === name.join(":"))}`];
  const isRight = (column, row) => column[row] === index.answer[row];
  return {
    only: (row) => isRight(given, row) && !isRight(other, row),
    other: (row) => !isRight(given, row) && isRight(other, row),
    differ: (row) => given[row] !== other[row],
  }[kind];
}
