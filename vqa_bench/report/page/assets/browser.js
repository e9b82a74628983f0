// The sample browser: the form asks, one sample is shown, the page's address remembers both.

const form = byId("filters");
const TYPING_PAUSE = 200; // milliseconds without a key before a text is searched for

let rows = [];
let position = 0;
let current = ""; // the question shown, "" without one
let newest = 0; // of all questions asked of the data only the newest is answered

/** Finds the samples of a state and shows the one it names, else the first. */
async function apply(state) {
  const asked = ++newest;
  fillForm(form, state);
  const chosen = stateOfForm(form, state.sample);
  const set = REPORT.sets[Number(chosen.set)];
  sayWhatIsHere(set);
  byId("position").textContent = "…";
  const [found, index] = await Promise.all([matching(chosen), indexOf(Number(chosen.set))]);
  if (asked !== newest) return;
  rows = found;
  const place = rows.findIndex((row) => String(index.question_index[row]) === state.sample);
  position = Math.max(place, 0);
  const missing = state.sample && place < 0 && !filtered(chosen) ? state.sample : null;
  await show(asked, missing);
}

const filtered = (state) => ["type", "result", "other", "answer", "given", "text"].some((name) => state[name] !== "");

async function show(asked, missing = null) {
  const state = stateOfForm(form, "");
  const number = Number(state.set);
  const target = byId("sample");
  byId("previous").disabled = position <= 0;
  byId("next").disabled = position >= rows.length - 1;
  byId("link").hidden = rows.length === 0;
  if (rows.length === 0) {
    byId("position").textContent = "no sample";
    target.replaceChildren(h("p", { class: "problem" }, "No sample is like that. Choose fewer filters."));
    history.replaceState(null, "", addressOf(state));
    return;
  }
  const sample = await sampleOf(number, rows[position]);
  if (asked !== newest) return;
  const set = REPORT.sets[number];
  showSample(target, sample, set, set.cells.findIndex(({ cell }) => cell === state.cell));
  byId("position").textContent = `${count(position + 1)} of ${count(rows.length)}`;
  if (missing !== null) target.prepend(h("p", { class: "problem" }, `Question ${missing} is not among the samples of this page.`));
  current = String(sample.question);
  const address = addressOf({ ...state, sample: current });
  byId("link").setAttribute("href", address);
  history.replaceState(null, "", address);
}

function go(steps) {
  const to = position + steps;
  if (to < 0 || to >= rows.length) return;
  position = to;
  show(++newest);
}

function sayWhatIsHere(set) {
  const texts = [];
  if (set.browsable < set.images)
    texts.push(`${count(set.browsable)} of ${count(set.images)} images can be browsed, chosen at random; all tables count all of them.`);
  else texts.push(`All ${count(set.questions)} questions about ${count(set.images)} images can be browsed.`);
  const problems = new Set(set.sources.map(({ problem }) => problem).filter((problem) => problem !== null));
  byId("chosen").replaceChildren(texts.join(" "), ...[...problems].map((problem) => h("span", { class: "problem" }, ` ${problem}`)));
}

/** From the table of mistakes to the samples of one of its entries. */
function showMistakes(set, cell, right, given) {
  apply({ ...DEFAULTS, set: String(set), cell: cell.cell, answer: right, given });
  byId("samples").scrollIntoView();
}

let typing;
const again = () => apply(stateOfForm(form, current));
form.addEventListener("change", again);
form.elements.text.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(again, TYPING_PAUSE);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  apply({ ...DEFAULTS, set: form.elements.set.value, cell: form.elements.cell.value, sample: current });
});
byId("previous").addEventListener("click", () => go(-1));
byId("next").addEventListener("click", () => go(1));
byId("sample").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (steps === undefined || event.target !== event.currentTarget) return;
  event.preventDefault();
  go(steps);
});
window.addEventListener("hashchange", () => {
  const state = stateOfAddress();
  if (state !== null) apply(state);
});

if (REPORT.sets.length) {
  const linked = stateOfAddress();
  confusionTable(showMistakes);
  apply(linked ?? DEFAULTS).then(() => linked && byId("samples").scrollIntoView());
} else {
  byId("mistakes").hidden = byId("samples").hidden = true;
}
