// The picture before and after, its patches, and one of them enlarged.

const root = part(".inside");
const grid = part("canvas.grid");
const square = part("img.square");
const original = part("img.original");

function showPicture(picture) {
  root.dataset.picture = Boolean(picture);
  if (!picture) return;
  if (square.src !== new URL(picture.square.url, location).href) showTower(null);
  square.src = picture.square.url;
  square.width = square.height = picture.size;
  original.src = picture.original.url;
  const middle = Math.floor(picture.grid / 2);
  if ((state.patch ?? Infinity) >= picture.grid ** 2) state.patch = middle * picture.grid + middle;
  drawPatches();
}

function drawPatches() {
  const { picture } = state.value;
  if (!picture || !square.naturalWidth) return;
  const pen = penOf(grid, grid.clientWidth, grid.clientWidth);
  const step = grid.clientWidth / picture.grid;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(square, 0, 0, grid.clientWidth, grid.clientWidth);
  pen.strokeStyle = step < 16 ? "#ffffff55" : "#ffffff99";
  pen.lineWidth = step < 16 ? 0.5 : 1;
  for (let i = 1; i < picture.grid; i++) {
    pen.strokeRect(i * step, -1, 0, grid.clientWidth + 2);
    pen.strokeRect(-1, i * step, grid.clientWidth + 2, 0);
  }
  drawTowerHeat(pen, step);
  drawChosenPatch(pen, step);
  tellPatch();
}

function drawChosenPatch(pen, step) {
  const [row, column] = placeOf(state.patch);
  for (const [width, colour] of [[6, "#000000aa"], [3, "#ffffff"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.strokeRect(column * step, row * step, step, step);
  }
  const one = part("canvas.patch");
  const size = square.naturalWidth / state.value.picture.grid;
  const close = penOf(one, one.clientWidth, one.clientWidth);
  close.imageSmoothingEnabled = false;
  close.drawImage(square, column * size, row * size, size, size, 0, 0, one.clientWidth, one.clientWidth);
}

function tellPatch() {
  const { width, height, grid: side } = state.value.picture;
  const [row, column] = placeOf(state.patch);
  const covers = [width / side, height / side].map((pixels) => Math.round(10 * pixels) / 10).join(" × ");
  part(".patches .told").textContent =
    `Patch ${state.patch}, in row ${row + 1} and column ${column + 1}: ${covers} pixels of your picture.`;
  for (const node of root.querySelectorAll(".at")) node.textContent = state.patch;
}

function placeOf(patch) {
  return [Math.floor(patch / state.value.picture.grid), patch % state.value.picture.grid];
}

function choosePatch(row, column) {
  const side = state.value?.picture?.grid;
  if (!side || row < 0 || column < 0 || row >= side || column >= side) return;
  state.patch = row * side + column;
  drawPatches();
}

// A canvas at the screen's own resolution, to be drawn on in CSS pixels.
function penOf(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  return pen;
}

square.addEventListener("load", drawPatches);
for (const kind of ["pointermove", "pointerdown"]) {
  grid.addEventListener(kind, (event) => {
    const side = state.value?.picture?.grid;
    const bounds = grid.getBoundingClientRect();
    const row = Math.floor(((event.clientY - bounds.top) / bounds.height) * side);
    choosePatch(row, Math.floor(((event.clientX - bounds.left) / bounds.width) * side));
  });
}
grid.addEventListener("click", askTower);
grid.addEventListener("keydown", (event) => {
  if (event.key === "Enter") askTower();
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (!steps[event.key] || !state.value?.picture) return;
  event.preventDefault();
  const [row, column] = placeOf(state.patch);
  choosePatch(row + steps[event.key][0], column + steps[event.key][1]);
});
