// Sinks: patches that are hot whatever is asked, and the heat without them.
//
// For one layer and head a patch is a sink if every known row of this run, of prompt
// and answer alike, gives it at least SINK times an even share of what that row spends
// on the image. One row alone cannot tell what it shares with others, so it has none.

const SINK = 4;
const leasts = new Map(); // [layer, head] -> the least part that a row gave each patch

// The heat of some tokens with its sinks left out (of several heads, each one's own), how
// many patches these are, and the part of the image's attention that they had.
function heatWithoutSinks(keys, layer, head) {
  const whole = heatOf(keys, layer, head);
  if (!whole) return null;
  const known = keys.filter((key) => maps.kept.has(key));
  if (head === VARIED) return heatWithoutSinks(known, layer, mostVaried(known, layer));
  const name = `${known}:${layer}:${head}`;
  return remembered(`${name} without the sinks of ${maps.kept.size}`, () => {
    const patches = new Float32Array(shape.patches);
    const sinks = new Set();
    const [from, to] = headRange(head);
    for (let h = from; h < to; h++) {
      const own = heatOf(keys, layer, h).patches;
      const isSink = sinksOf(layer, h);
      for (let i = 0; i < shape.patches; i++) {
        if (isSink(i)) sinks.add(i);
        else if (head === MAX) patches[i] = Math.max(patches[i], own[i]);
        else patches[i] += own[i] / (to - from);
      }
    }
    const rest = extent(patches);
    const gone = whole.mass ? Math.max(0, 1 - rest.mass / whole.mass) : 0;
    return { ...whole, ...rest, patches, sinks: sinks.size, gone };
  });
}

function sinksOf(layer, head) {
  const { rows, parts } = leastOf(layer * shape.heads + head);
  const enough = SINK / shape.patches;
  return (patch) => rows > 1 && parts[patch] >= enough;
}

// Rows that have come since the last time are added to what is known.
function leastOf(row) {
  if (!leasts.has(row)) {
    leasts.set(row, { rows: 0, parts: new Float32Array(shape.patches).fill(1) });
  }
  const least = leasts.get(row);
  if (least.rows < maps.kept.size) {
    const fresh = [...maps.kept.values()].slice(least.rows);
    for (const one of fresh) lower(least.parts, one.levels, startOf(row));
    least.rows = maps.kept.size;
  }
  return least;
}

function lower(parts, levels, start) {
  let mass = 0;
  for (let i = 0; i < parts.length; i++) mass += levels[start + i] ** 2;
  if (!mass) return; // a row that does not look at the image has no parts of it
  for (let i = 0; i < parts.length; i++) {
    parts[i] = Math.min(parts[i], levels[start + i] ** 2 / mass);
  }
}
