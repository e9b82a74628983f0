// The page's data: what the writer put into it, unpacked when it is needed. Knows no elements but those that hold data.

const REPORT = JSON.parse(document.getElementById("report").textContent);
const TYPES = { Uint8Array, Uint16Array, Uint32Array, Float64Array };
const BLOCKS_KEPT = 12;

/** A pack as `pack` in blocks.py writes it: {head, arrays by name}. */
async function unpack(id) {
  const text = atob(document.getElementById(id).textContent);
  const zipped = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) zipped[i] = text.charCodeAt(i);
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = await new Response(stream).arrayBuffer();
  const length = new DataView(raw).getUint32(0, true);
  const { arrays: places, ...head } = JSON.parse(new TextDecoder().decode(new Uint8Array(raw, 4, length)));
  const arrays = {};
  for (const [name, [type, offset, size]] of Object.entries(places)) {
    const start = 4 + length + offset;
    arrays[name] = new TYPES[type](raw.slice(start, start + size));
  }
  return { head, arrays };
}

/** What a function of one argument returned, for the arguments it was called with last. */
function remembered(compute, kept) {
  const made = new Map();
  return (key) => {
    const found = made.has(key) ? made.get(key) : compute(key);
    made.delete(key); // so that it is the newest again
    made.set(key, found);
    if (made.size > kept) made.delete(made.keys().next().value);
    return found;
  };
}

const indexOf = remembered((set) => unpack(`index-${set}`).then((pack) => pack.arrays), Infinity);
const textsOf = remembered((name) => unpack(`texts-${name}`).then((pack) => pack.head.texts), Infinity);
const detailsOf = remembered((name) => unpack(`details-${name}`), BLOCKS_KEPT);

/** Every question of a set as text in small letters, in the order of the index; empty texts where there are none. */
const searchable = remembered(async (set) => {
  const { block, place } = await indexOf(set);
  const blocks = Array.from({ length: REPORT.sets[set].blocks }, (_, number) => textsOf(`${set}-${number}`));
  const texts = await Promise.all(blocks);
  return Array.from(block, (number, row) => (texts[number][place[row]] ?? "").toLowerCase());
}, Infinity);

/** Everything about a row of a set's index. */
async function sampleOf(set, row) {
  const index = await indexOf(set);
  const name = `${set}-${index.block[row]}`;
  const [texts, { head, arrays }] = await Promise.all([textsOf(name), detailsOf(name)]);
  const { cells, sources, answers, types } = REPORT.sets[set];
  const place = index.place[row];
  const image = head.image[place];
  return {
    question: index.question_index[row],
    text: texts[place],
    type: types[index.type[row]],
    answer: index.answer[row],
    image: head.images[image],
    program: head.programs[place] ?? [],
    cells: cells.map((cell, number) => ({
      ...cell,
      given: index[`given${number}`][row],
      written: head.written[number][place],
      shares: shares(arrays[`scores${number}`].subarray(place * answers.length, (place + 1) * answers.length)),
    })),
    pictures: sources.map((source, number) => picture(head, arrays, number, image)),
  };
}

/** Probabilities of the candidates, each to half a point: they were rounded one by one, so their sum may be off a little. */
const shares = (scores) => Array.from(scores, (score) => (score / REPORT.scale) ** 2);

/** An image of a source: its file for the browser (null without one), how many bytes it has, and its first and last. */
function picture(head, arrays, source, image) {
  const lengths = head[`bytes${source}`];
  if (lengths === undefined) return null;
  const kept = lengths.map((length) => Math.min(length, REPORT.head + REPORT.tail));
  const bytes = cut(arrays[`bytes${source}`], kept, image);
  const whole = bytes.length === lengths[image];
  const file = head[`pictures${source}`].length ? cut(arrays[`pictures${source}`], head[`pictures${source}`], image) : null;
  return {
    file,
    length: lengths[image],
    first: whole ? bytes : bytes.subarray(0, REPORT.head),
    last: whole ? bytes.subarray(0, 0) : bytes.subarray(REPORT.head),
  };
}

/** One of several arrays that lie one after the other. */
function cut(array, lengths, place) {
  const start = lengths.slice(0, place).reduce((total, length) => total + length, 0);
  return array.subarray(start, start + lengths[place]);
}
