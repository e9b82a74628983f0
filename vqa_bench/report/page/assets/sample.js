// One sample on the screen: picture, question, answers with their probabilities, program and bytes.

const FEW = 5; // candidates shown at first
const NODES_SHOWN = 200; // a program whose parts are used many times could be drawn without end

let picturesShown = [];

/** Puts a sample into an element; `chosen` is the place of the cell that it is seen from. */
function showSample(element, sample, set, chosen) {
  picturesShown.forEach((url) => URL.revokeObjectURL(url));
  picturesShown = [];
  const cell = sample.cells[chosen];
  const facts = [`question ${count(sample.question)}`, words(sample.type.name), sample.image].join(" · ");
  element.replaceChildren(
    h("div", { class: "seen" }, pictureView(sample, set, cell)),
    h("div", { class: "asked" },
      h("p", { class: "facts" }, facts),
      h("h3", { class: "question" }, sample.text ?? "The text of this question is in a shard that is not at hand."),
      verdict(sample, set, cell),
      bars(sample, set, cell),
    ),
    h("div", { class: "program" }, h("h4", {}, "How it is answered"), programView(sample.program)),
    h("div", { class: "others" }, h("h4", {}, "All models"), othersView(sample, set, chosen)),
    h("div", { class: "bytes" }, h("h4", {}, `What ${cell.title} reads`), sequenceView(sample, cell, set)),
  );
}

function pictureView(sample, set, cell) {
  const own = sample.pictures[cell.source];
  const source = own?.file ? cell.source : sample.pictures.findIndex((picture) => picture?.file);
  if (source < 0) {
    const problem = set.sources[cell.source].problem ?? "The picture cannot be drawn: its encoding is not known here.";
    return h("p", { class: "problem" }, problem);
  }
  const { file, length } = sample.pictures[source];
  const type = { 0x89: "image/png", 0xff: "image/jpeg", 0x52: "image/webp" }[file[0]];
  const url = URL.createObjectURL(new Blob([file], { type }));
  picturesShown.push(url);
  const spec = `${set.sources[source].spec}, ${count(length)} bytes`;
  const text = cell.blind ? `${cell.title} does not see this picture (${spec}).` : `As the model gets it: ${spec}.`;
  return h("figure", {}, h("img", { src: url, alt: `Image ${sample.image}` }), h("figcaption", {}, text));
}

function verdict(sample, set, cell) {
  const isRight = cell.given === sample.answer;
  const given = h("strong", {}, set.answers[cell.given]);
  const right = h("strong", {}, set.answers[sample.answer]);
  const mark = h("span", { class: isRight ? "mark right" : "mark wrong" }, isRight ? "✓ right" : "✗ wrong");
  const written = cell.written === undefined ? null : h("span", { class: "written" }, ` Left to itself it wrote “${cell.written}”.`);
  return h("p", { class: "verdict" }, mark, ` ${cell.title} answers `, given, isRight ? "." : [", the right answer is ", right, "."], written);
}

function bars(sample, set, cell) {
  const order = cell.shares.map((_, place) => place);
  order.sort((a, b) => cell.shares[b] - cell.shares[a] || (b === cell.given) - (a === cell.given) || a - b);
  const few = order.filter((place, rank) => rank < FEW || place === sample.answer);
  const list = h("ol", { class: "bars" });
  const draw = (places) => list.replaceChildren(...places.map((place) => bar(sample, set, cell, place)));
  draw(few);
  const all = `All ${count(order.length)} answers`;
  const toggle = h("button", { type: "button", "aria-expanded": "false", click: () => {
    const open = toggle.getAttribute("aria-expanded") === "false";
    toggle.setAttribute("aria-expanded", open);
    toggle.textContent = open ? "Fewer answers" : all;
    draw(open ? order : few);
  } }, all);
  return h("div", { class: "answers" }, list, order.length > few.length ? toggle : null);
}

function bar(sample, set, cell, place) {
  const kinds = [place === sample.answer ? "right" : null, place === cell.given ? "given" : null].filter(Boolean);
  const said = kinds.length ? ` (${kinds.join(", ")})` : "";
  const share = cell.shares[place];
  return h("li", { class: kinds.join(" "), style: `--share:${(100 * share).toFixed(2)}%` },
    h("span", { class: "answer" }, set.answers[place], h("small", {}, said)),
    h("span", { class: "track" }, h("span", {})),
    h("span", { class: "share" }, percent(share)),
  );
}

/** Every model's answer to the question, so that one sees who else is wrong. */
function othersView(sample, set, chosen) {
  const rows = sample.cells.map((cell, place) => {
    const isRight = cell.given === sample.answer;
    return h("tr", { class: place === chosen ? "chosen" : null },
      h("th", { scope: "row" }, cell.blind ? `${cell.title} (blind)` : cell.title),
      h("td", {}, set.answers[cell.given]),
      h("td", { class: isRight ? "right" : "wrong" }, isRight ? "✓ right" : "✗ wrong"),
      h("td", {}, percent(cell.shares[cell.given])),
    );
  });
  const head = ["model", "answer", "", "sure"].map((text) => h("th", { scope: "col" }, text));
  return h("div", { class: "frame" }, h("table", { class: "plain" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}

/** A program in the order in which it is carried out: steps joined by arrows, branches indented. */
function programView(program) {
  if (program.length === 0) return h("p", {}, "No program is known for this question.");
  return h("div", { class: "steps" }, branch(program, program.length - 1, { left: NODES_SHOWN }));
}

/** What leads to a node, and the node: the branches that its chain of steps begins with, then that chain. */
function branch(program, last, budget) {
  const chain = [];
  let place = last;
  while (budget.left-- > 0) {
    chain.unshift(step(program[place]));
    const inputs = inputsOf(program, place);
    if (inputs.length !== 1) {
      const branches = inputs.map((input) => h("li", {}, branch(program, input, budget)));
      const joined = chain.flatMap((each, number) => (number || inputs.length ? [h("span", { class: "arrow" }, "→"), each] : [each]));
      return [branches.length ? h("ul", {}, branches) : null, h("div", {}, joined)];
    }
    place = inputs[0];
  }
  return [h("div", {}, "… → ", chain)];
}

/** The nodes before a node that it takes its input from. */
const inputsOf = (program, place) => program[place][1].filter((input) => Number.isInteger(input) && input >= 0 && input < place);

function step([name, , values]) {
  const detail = values.length ? [" ", h("b", {}, values.join(" "))] : [];
  return h("span", { class: "step" }, words(name), detail);
}
