// Maps: fetch the attention of tokens once, then answer for any layer and head.
// A key is "a3" for answer token 3 and "p2" for prompt token 2.

const PREFETCH_BYTES = 8 * 2 ** 20;
const MEAN = -1;

const shape = { layers: 0, heads: 0, rows: 0, columns: 0, patches: 0 };
const maps = { run: "", kept: new Map(), asked: new Set(), sums: new Map(), lost: false };

function resetMaps(run, value) {
  Object.assign(maps, { run, lost: false });
  maps.kept.clear();
  maps.asked.clear();
  maps.sums.clear();
  const [rows, columns] = value.grid;
  Object.assign(shape, { layers: value.layers, heads: value.heads, rows, columns });
  shape.patches = rows * columns;
}

function mapBytes() {
  return shape.layers * shape.heads * (shape.patches + 20);
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
  missing.forEach((key) => maps.asked.delete(key));
  maps.lost = found === null;
  for (const key in found || {}) maps.kept.set(key, unpack(found[key]));
  maps.sums.clear();
  return true;
}

// The maps are float32 peaks [L, H], float32 shares [L, H, 4], a byte for each patch.
function unpack(entry) {
  const bytes = Uint8Array.from(atob(entry.maps), (c) => c.charCodeAt(0));
  const count = shape.layers * shape.heads;
  return {
    peaks: new Float32Array(bytes.buffer, 0, count),
    shares: new Float32Array(bytes.buffer, count * 4, count * 4),
    levels: bytes.subarray(count * 20),
    candidates: entry.candidates,
  };
}

// What else the token might have been; nothing before it has been fetched.
function candidatesOf(key) {
  return maps.kept.get(key)?.candidates || [];
}

// The attention of a row on one patch, of one head or the mean of all.
function lookAt(key, layer, head, patch) {
  const one = maps.kept.get(key);
  if (!one) return null;
  let sum = 0;
  const [from, to] = headRange(head);
  for (let h = from; h < to; h++) {
    const row = layer * shape.heads + h;
    const level = one.levels[row * shape.patches + patch] / 255;
    sum += one.peaks[row] * level * level;
  }
  return sum / (to - from);
}

// The mean over tokens of one head (or of all): patches, shares, and the largest
// patch that these tokens have in any layer and head.
function heatOf(keys, layer, head) {
  const known = keys.filter((key) => maps.kept.has(key));
  if (!known.length) return null;
  const name = known.join() + ":" + layer + ":" + head;
  if (!maps.sums.has(name)) maps.sums.set(name, sumUp(known, layer, head));
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
    ceiling = Math.max(ceiling, ...one.peaks);
    for (let h = from; h < to; h++) {
      const row = layer * shape.heads + h;
      const peak = (one.peaks[row] * part) / (255 * 255);
      const start = row * shape.patches;
      for (let i = 0; i < shape.patches; i++) {
        const level = one.levels[start + i];
        patches[i] += peak * level * level;
      }
      for (let s = 0; s < 4; s++) shares[s] += part * one.shares[row * 4 + s];
    }
  }
  let peak = 0;
  let mass = 0;
  for (const p of patches) {
    peak = Math.max(peak, p);
    mass += p;
  }
  return { patches, shares, peak, mass, ceiling };
}

function headRange(head) {
  return head === MEAN ? [0, shape.heads] : [head, head + 1];
}
