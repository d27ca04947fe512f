// Sheet: all layers and heads at once, small. Pointing previews, clicking keeps.

const grid = part(".sheet .cells");
const shownCells = grid.querySelector("canvas");
const paintedCells = document.createElement("canvas"); // a pixel for each patch, or cell
const sheet = {
  view: "maps", // or "box", the share in the object's box, or "image", that on the image
  name: "", // of what is painted; another name is painted afresh
  next: 0, // the layer to paint next
  began: 0, // milliseconds
  waits: 0, // timer
  shares: new Float32Array(0), // [L, H], of the views that colour a whole cell
  cursor: null, // layer and head that are pointed at
  width: 0,
};
const SHEET_HEIGHT = 460; // CSS pixels, however many layers there are
const PAINT_MS = 6; // of a frame; what is left waits for the next
const REST_MS = 400; // between two sheets while tokens stream

function drawSheet() {
  const size = cellSize();
  const resized = fitSheet(size);
  markCell(".kept", { layer: state.layer, head: state.head }, size);
  markCell(".pointed", sheet.cursor, size);
  const known = state.chosen.filter((key) => maps.kept.has(key));
  const box = sheet.view === "box" ? boxChosen() : null;
  if (isBegun(known, box)) paintLayers(known, box);
  if (resized) copyLayers(0, shape.layers, size);
  write(part(".sheet .reading"), sheetWords());
}

// While tokens stream the sheet follows now and then, not with each of them.
function isBegun(known, box) {
  const scale = state.scale === "sinks" ? `sinks of ${maps.kept.size}` : state.scale;
  const name = [maps.run, state.picture, known, sheet.view, box, scale, state.contrast].join("|");
  if (name === sheet.name) return true;
  const rest = sheet.began + REST_MS - performance.now();
  if (root.dataset.phase === "running" && known.length && rest > 0) {
    clearTimeout(sheet.waits);
    sheet.waits = setTimeout(redraw, rest);
    return false;
  }
  Object.assign(sheet, { name, next: 0, began: performance.now() });
  sheet.shares = new Float32Array(shape.layers * shape.heads);
  return true;
}

function paintLayers(known, box) {
  if (sheet.next >= shape.layers) return;
  const first = sheet.next;
  const end = performance.now() + PAINT_MS;
  const blank = !known.length || (sheet.view === "box" && !box);
  const weights = box && patchesInBox(box);
  if (blank) sheet.next = shape.layers;
  while (sheet.next < shape.layers && performance.now() < end) {
    if (sheet.view === "maps") paintMaps(known, sheet.next);
    else measureShares(known, sheet.next, weights);
    sheet.next++;
  }
  if (sheet.next < shape.layers) redraw();
  else grid.dataset.shows = blank ? "" : `${sheet.view}:${known}`;
  if (blank) shownCells.getContext("2d").clearRect(0, 0, shownCells.width, shownCells.height);
  else if (sheet.view === "maps") copyLayers(first, sheet.next, cellSize());
  else if (sheet.next === shape.layers) paintShares();
}

function paintMaps(known, layer) {
  const width = shape.heads * shape.columns;
  fit(paintedCells, width, shape.layers * shape.rows);
  const pen = paintedCells.getContext("2d");
  const pixels = pen.createImageData(width, shape.rows);
  const words = new Uint32Array(pixels.data.buffer);
  for (let head = 0; head < shape.heads; head++) {
    const heat = heatShown(known, layer, head);
    inkPatches(words, head * shape.columns, width, heat, inked().solid);
  }
  pen.putImageData(pixels, 0, layer * shape.rows);
}

function measureShares(known, layer, weights) {
  for (let head = 0; head < shape.heads; head++) {
    sheet.shares[layer * shape.heads + head] = shareOf(heatShown(known, layer, head), weights);
  }
}

// Of a head's attention, the part on the image; of that, the part in a box.
function shareOf(heat, weights) {
  if (!weights) return heat.shares[0];
  let inside = 0;
  for (let i = 0; i < shape.patches; i++) inside += weights[i] * heat.patches[i];
  return heat.mass ? inside / heat.mass : 0;
}

function paintShares() {
  fit(paintedCells, shape.heads, shape.layers);
  const pen = paintedCells.getContext("2d");
  const pixels = pen.createImageData(shape.heads, shape.layers);
  const words = new Uint32Array(pixels.data.buffer);
  const most = Math.max(...sheet.shares) || 1;
  for (let i = 0; i < words.length; i++) {
    words[i] = inked().solid[Math.round((STEPS * sheet.shares[i]) / most)];
  }
  pen.putImageData(pixels, 0, 0);
  copyLayers(0, shape.layers, cellSize());
}

// From the painted cells to those that are seen, with a thin gap between them.
function copyLayers(first, end, { w, h }) {
  const pen = shownCells.getContext("2d");
  const ratio = shownCells.width / (w * shape.heads);
  const high = paintedCells.height / shape.layers;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.imageSmoothingEnabled = h * ratio < high; // only where patches are below a pixel
  const place = [0, first * h, w * shape.heads, (end - first) * h];
  pen.clearRect(...place);
  pen.drawImage(paintedCells, 0, first * high, paintedCells.width, (end - first) * high, ...place);
  const gap = h < 16 ? 0.5 : 1.5;
  for (let head = 1; head < shape.heads; head++) pen.clearRect(head * w - gap / 2, place[1], gap, place[3]);
  for (let layer = first; layer < end; layer++) pen.clearRect(0, layer * h - gap / 2, place[2], gap);
}

// Cells fill the card's width, and never need more than its height.
function cellSize() {
  const w = Math.max(6, Math.floor(sheet.width / shape.heads));
  return { w, h: Math.max(6, Math.min(w, Math.floor(SHEET_HEIGHT / shape.layers))) };
}

function fitSheet({ w, h }) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [w * shape.heads, h * shape.layers];
  if (!fit(shownCells, width * ratio, height * ratio)) return false;
  Object.assign(shownCells.style, { width: `${width}px`, height: `${height}px` });
  const every = Math.ceil(12 / h); // layers from one number to the next
  part(".sheet .layers").replaceChildren(...Array.from({ length: shape.layers }, (_, layer) => {
    const name = document.createElement("span");
    name.textContent = layer % every ? "" : layer;
    name.style.height = `${h}px`;
    return name;
  }));
  part(".sheet .axis").style.maxWidth = `${width}px`;
  part(".sheet .last").textContent = `head ${shape.heads - 1}`;
  return true;
}

// A frame around a cell, or around its layer where all heads are meant.
function markCell(name, cell, { w, h }) {
  const frame = grid.querySelector(name);
  frame.hidden = !cell;
  if (!cell) return;
  const [from, to] = headRange(headMeant(cell.layer, cell.head));
  frame.style.transform = `translate(${from * w}px, ${cell.layer * h}px)`;
  frame.style.width = `${(to - from) * w}px`;
  frame.style.height = `${h}px`;
}

function boxChosen() {
  const owner = state.chosen.length ? ownerOf(state.chosen[0]) : -1;
  const object = state.value.objects[state.object < 0 ? owner : state.object];
  return object && !state.picture && !object.box.includes(null) ? object.box : null;
}

// The part of each patch's area that is inside a box of pixels.
function patchesInBox([x1, y1, x2, y2]) {
  const inside = (from, to, count, side) =>
    Array.from({ length: count }, (_, i) => {
      const [low, high] = [(from / side) * count, (to / side) * count];
      return Math.max(0, Math.min(high, i + 1) - Math.max(low, i));
    });
  const across = inside(x1, x2, shape.columns, state.value.width);
  return inside(y1, y2, shape.rows, state.value.height).flatMap((down) => across.map((a) => a * down));
}

function sheetWords() {
  if (!grid.dataset.shows) {
    const none = sheet.view === "box" && state.chosen.length;
    return none ? "Choose an object, or a token of one." : "Maps come here when a token is chosen.";
  }
  if (sheet.cursor) return cellWords(sheet.cursor);
  if (sheet.view === "maps") return "Point to preview, click to keep.";
  const best = sheet.shares.indexOf(Math.max(...sheet.shares));
  return `Most: ${cellWords({ layer: Math.floor(best / shape.heads), head: best % shape.heads })}`;
}

function cellWords({ layer, head }) {
  const box = sheet.view === "box" ? boxChosen() : null;
  const heat = heatShown(state.chosen, layer, head);
  const share = heat ? spaced(shareOf(heat, box && patchesInBox(box))) : "not known yet";
  const where = areSeveral() ? "on all pictures" : "on the image";
  return `layer ${layer}, head ${head}: ${share} ${box ? "in the box" : where}`;
}

function pointAtCell(cell) {
  if (cell?.layer === sheet.cursor?.layer && cell?.head === sheet.cursor?.head) return;
  sheet.cursor = cell;
  preview(cell);
  if (cell) say(cellWords(cell));
}

function keepCell() {
  const { layer, head } = sheet.cursor;
  moveLayer(layer);
  moveHead(head, false);
}

function cellUnder(event) {
  const { w, h } = cellSize();
  const layer = Math.floor(event.offsetY / h);
  const head = Math.floor(event.offsetX / w);
  return layer < shape.layers && head < shape.heads ? { layer, head } : null;
}

function moveCell(down, right) {
  const { layer, head } = sheet.cursor || { layer: state.layer, head: Math.max(0, headMeant(state.layer, state.head)) };
  pointAtCell({
    layer: Math.max(0, Math.min(shape.layers - 1, layer + down)),
    head: Math.max(0, Math.min(shape.heads - 1, head + right)),
  });
}

shownCells.addEventListener("pointermove", (event) => {
  if (event.pointerType !== "touch") pointAtCell(cellUnder(event));
});
shownCells.addEventListener("pointerleave", () => pointAtCell(null));
shownCells.addEventListener("click", (event) => {
  pointAtCell(cellUnder(event));
  if (sheet.cursor) keepCell();
});
grid.addEventListener("blur", () => pointAtCell(null));
grid.addEventListener("keydown", (event) => {
  const moves = {
    ArrowUp: () => moveCell(-1, 0),
    ArrowDown: () => moveCell(1, 0),
    ArrowLeft: () => moveCell(0, -1),
    ArrowRight: () => moveCell(0, 1),
    Enter: () => sheet.cursor && keepCell(),
    Escape: () => pointAtCell(null),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
});
part(".sheet .switch").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  sheet.view = button.dataset.view;
  for (const each of event.currentTarget.children) each.setAttribute("aria-pressed", each === button);
  redraw();
});
new ResizeObserver(([entry]) => {
  sheet.width = entry.contentRect.width;
  redraw();
}).observe(grid);
