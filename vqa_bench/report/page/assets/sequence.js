// A question as the ids that a byte model reads: the same parts, padding and special ids as data/sequences.py makes.

const SPECIAL = new Map([
  [REPORT.ids.text, ["T>", "begins a text"]],
  [REPORT.ids.image, ["I>", "begins an image"]],
  [REPORT.ids.end, ["<<", "ends a part"]],
  [REPORT.ids.pad, ["··", "padding"]],
]);
const PADDING_SHOWN = 3;

/** The parts [{part, items}] of a sample's sequence; an item is an id, or {left_out: how many image bytes}. */
function sequenceParts(sample, cell, set) {
  const { layout, answer, align, patch, room } = cell.sequence;
  const padded = (length) => Math.ceil(length / patch) * patch;
  const bytes = (text) => [...new TextEncoder().encode(text)];
  const padding = (length) => Array(Math.max(length, 0)).fill(REPORT.ids.pad);
  const text = (content) => [
    ...[REPORT.ids.text, ...content, REPORT.ids.end],
    ...padding(padded(content.length + 2) - content.length - 2),
  ];
  const image = () => {
    const picture = sample.pictures[cell.source];
    if (picture === null) return [REPORT.ids.image, { left_out: null }, REPORT.ids.end];
    const lead = align ? patch : 1;
    const gap = picture.length - picture.first.length - picture.last.length;
    const middle = gap > 0 ? [{ left_out: gap }] : [];
    const after = padded(lead + (room ?? picture.length) + 1) - lead - picture.length - 1;
    const start = [REPORT.ids.image, ...padding(lead - 1)];
    return [...start, ...picture.first, ...middle, ...picture.last, REPORT.ids.end, ...padding(after)];
  };
  const written = answer === "letter" ? set.letters : set.answers;
  const make = { question: () => text(bytes(sample.text)), image, answer: () => text(bytes(written[sample.answer])) };
  return REPORT.parts[layout].map((part) => ({ part, items: make[part]() }));
}

/** The sequence as coloured marks, a line a part; long padding is shortened. */
function sequenceView(sample, cell, set) {
  if (cell.sequence === null) return h("p", {}, "This model reads no bytes: it is given words, or words and pixels.");
  if (sample.text === undefined) return h("p", {}, "The shard is not at hand, so the bytes cannot be shown.");
  const rows = sequenceParts(sample, cell, set).map(({ part, items }) =>
    h("div", { class: `part ${part}`, "data-part": part }, h("span", { class: "name" }, part), h("span", { class: "ids" }, marks(part, items))),
  );
  const legend = "T> and I> begin a text or an image, << ends a part, ·· is padding; bytes of an image are hexadecimal.";
  return h("div", { class: "sequence" }, rows, h("p", { class: "notes" }, legend));
}

function marks(part, items) {
  const found = [];
  for (let i = 0; i < items.length; ) {
    let run = 1;
    while (items[i] === REPORT.ids.pad && items[i + run] === REPORT.ids.pad) run++;
    if (run > PADDING_SHOWN) {
      found.push(h("i", { class: "special", "data-id": items[i], "data-times": run, title: `${count(run)} ids of padding` }, `·· × ${count(run)}`));
      i += run;
      continue;
    }
    found.push(mark(part, items[i++]));
  }
  return found;
}

function mark(part, item) {
  if (typeof item === "object") {
    const text = item.left_out === null ? "… the image is not at hand …" : `… ${count(item.left_out)} bytes …`;
    return h("i", { class: "gap", "data-left-out": item.left_out }, text);
  }
  const special = SPECIAL.get(item);
  if (special !== undefined) return h("i", { class: "special", "data-id": item, title: `${item}: ${special[1]}` }, special[0]);
  const isPrintable = item > 32 && item < 127;
  const hexadecimal = item.toString(16).padStart(2, "0");
  const title = `byte ${item}, 0x${hexadecimal}${isPrintable ? `, ${String.fromCharCode(item)}` : ""}`;
  const shown = part === "image" ? hexadecimal : item === 32 ? "␣" : isPrintable ? String.fromCharCode(item) : hexadecimal;
  return h("i", { "data-id": item, title }, shown);
}
