// Maps: fetch the attention of tokens once, then answer for any layer and head.
// A key is "a3" for answer token 3 and "p2" for prompt token 2.

const LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
const VALUES = new Uint8Array(128); // of the letters
for (let i = 0; i < 85; i++) VALUES[LETTERS.charCodeAt(i)] = i;

const PREFETCH_BYTES = 8 * 2 ** 20;
// In place of one head: the mean of all; of each patch the most that a head gave it;
// or the head whose map varies most.
const [MEAN, MAX, VARIED] = [-1, -2, -3];
const SUMS_BYTES = 32 * 2 ** 20;

// Of several pictures each layer and head has `stride` levels, and those of the picture
// that is shown begin at `offset`.
const shape = { layers: 0, heads: 0, rows: 0, columns: 0, patches: 0, stride: 0, offset: 0 };
const maps = { run: "", kept: new Map(), asked: new Set(), sums: new Map(), lost: false };

function resetMaps(run, value) {
  Object.assign(maps, { run, lost: false });
  for (const each of [maps.kept, maps.asked, maps.sums, leasts]) each.clear();
  const [rows, columns] = value.grid;
  Object.assign(shape, { layers: value.layers, heads: value.heads, rows, columns });
  shape.patches = rows * columns;
  shape.stride = shape.patches * value.pictures.length;
}

// Where the levels of a layer and head begin, those on the picture that is shown.
const startOf = (row) => row * shape.stride + shape.offset;

function mapBytes() {
  return shape.layers * shape.heads * (shape.stride + 10);
}

// Resolves to true when something new has come.
async function fetchMaps(keys) {
  const run = maps.run;
  const missing = keys.filter((key) => !maps.kept.has(key) && !maps.asked.has(key));
  if (!run || maps.lost || !missing.length) return false;
  missing.forEach((key) => maps.asked.add(key));
  let found = {};
  try {
    found = await server.attention({ run, keys: missing });
  } catch {
    found = {}; // The connection failed: the next look asks again.
  }
  if (run !== maps.run) return false;
  const names = Object.keys(found || {});
  const entries = await Promise.all(names.map((key) => unpack(found[key])));
  if (run !== maps.run) return false;
  missing.forEach((key) => maps.asked.delete(key));
  maps.lost = found === null;
  names.forEach((key, i) => maps.kept.set(key, entries[i]));
  return true;
}

// Float16 shares [L, H, 4] and roots of peaks [L, H], then a byte for each patch: the
// root of its part of the peak. The bins of a <loc> token are a peak and bytes too.
async function unpack(entry) {
  const count = shape.layers * shape.heads;
  const bytes = await inflated(entry.maps);
  const bins = entry.bins ? await inflated(entry.bins) : null;
  const peaks = halves(bytes, count * 4, count).map((root) => root * root);
  return {
    shares: halves(bytes, 0, count * 4),
    peaks,
    ceiling: peaks.reduce((most, peak) => Math.max(most, peak), 0),
    levels: bytes.subarray(count * 10),
    bins: bins && Float32Array.from(bins.subarray(2), squared(halves(bins, 0, 1)[0] ** 2)),
    candidates: entry.candidates,
  };
}

async function inflated(text) {
  const stream = new Blob([fromBase85(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Four bytes of five letters, RFC 1924's; of the last ones some may be left out.
function fromBase85(text) {
  const missing = (5 - (text.length % 5)) % 5;
  const letters = text.padEnd(text.length + missing, "~");
  const bytes = new DataView(new ArrayBuffer((letters.length / 5) * 4));
  for (let i = 0, at = 0; i < letters.length; at += 4) {
    let word = 0;
    for (const end = i + 5; i < end; i++) word = word * 85 + VALUES[letters.charCodeAt(i)];
    bytes.setUint32(at, word);
  }
  return new Uint8Array(bytes.buffer, 0, bytes.byteLength - missing);
}

const squared = (peak) => (level) => peak * (level / 255) ** 2;

// Float16 numbers, none of them negative.
function halves(bytes, start, count) {
  const bits = new Uint16Array(bytes.buffer, start * 2, count);
  return Float32Array.from(bits, (half) => {
    const [exponent, fraction] = [half >> 10, (half & 1023) / 1024];
    return exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14;
  });
}

// What else the token might have been; nothing before it has been fetched.
function candidatesOf(key) {
  return maps.kept.get(key)?.candidates || [];
}

// The attention of a row on one patch, of one head or the mean of all.
function lookAt(key, layer, head, patch) {
  const one = maps.kept.get(key);
  if (!one) return null;
  if (head === VARIED) return lookAt(key, layer, mostVaried([key], layer), patch);
  let [sum, most] = [0, 0];
  const [from, to] = headRange(head);
  for (let h = from; h < to; h++) {
    const row = layer * shape.heads + h;
    const level = one.levels[startOf(row) + patch] / 255;
    const look = one.peaks[row] * level * level;
    sum += look;
    most = Math.max(most, look);
  }
  return head === MAX ? most : sum / (to - from);
}

// The mean over tokens of one head (or of all): patches, shares, and the largest
// patch that these tokens have in any layer and head. Null before their maps came.
function heatOf(keys, layer, head) {
  const known = keys.filter((key) => maps.kept.has(key));
  if (!known.length) return null;
  if (head === VARIED) return heatOf(known, layer, mostVaried(known, layer));
  const make = head === MAX ? mostOf : sumUp;
  return remembered(`${known}:${layer}:${head}`, () => make(known, layer, head));
}

// The maximum has no shares of its own: those of the mean stand for it.
function mostOf(keys, layer) {
  const patches = new Float32Array(shape.patches);
  for (let head = 0; head < shape.heads; head++) {
    const own = heatOf(keys, layer, head).patches;
    for (let i = 0; i < patches.length; i++) patches[i] = Math.max(patches[i], own[i]);
  }
  return { ...heatOf(keys, layer, MEAN), patches, ...extent(patches) };
}

// The head whose map varies most, the first of equal ones.
function mostVaried(keys, layer) {
  return remembered(`${keys}:${layer}:varied`, () => {
    const variances = Array.from({ length: shape.heads }, (_, head) => variance(heatOf(keys, layer, head)));
    return variances.indexOf(Math.max(...variances));
  });
}

function variance({ patches, mass }) {
  const mean = mass / patches.length;
  return patches.reduce((sum, patch) => sum + (patch - mean) ** 2, 0) / patches.length;
}

function remembered(name, make) {
  if (!maps.sums.has(name)) {
    if (maps.sums.size * shape.patches * 4 >= SUMS_BYTES) maps.sums.clear();
    maps.sums.set(name, make());
  }
  return maps.sums.get(name);
}

function sumUp(keys, layer, head) {
  const patches = new Float32Array(shape.patches);
  const shares = [0, 0, 0, 0];
  const [from, to] = headRange(head);
  const part = 1 / (keys.length * (to - from));
  let ceiling = 0;
  for (const key of keys) {
    const one = maps.kept.get(key);
    ceiling = Math.max(ceiling, one.ceiling);
    for (let h = from; h < to; h++) {
      const row = layer * shape.heads + h;
      const peak = (one.peaks[row] * part) / (255 * 255);
      const start = startOf(row);
      for (let i = 0; i < shape.patches; i++) {
        const level = one.levels[start + i];
        patches[i] += peak * level * level;
      }
      for (let s = 0; s < 4; s++) shares[s] += part * one.shares[row * 4 + s];
    }
  }
  return { patches, shares, ceiling, ...extent(patches) };
}

function extent(patches) {
  let [peak, mass] = [0, 0];
  for (const p of patches) {
    if (p > peak) peak = p;
    mass += p;
  }
  return { peak, mass };
}

function headRange(head) {
  return head < 0 ? [0, shape.heads] : [head, head + 1];
}
