// The vision tower: where the patch that was clicked looked, by layer and head.

const tower = part(".tower-maps");
const towerPixels = document.createElement("canvas"); // a pixel for each patch of each map
const towerLook = { cell: null }; // layer and head that lie on the picture

function askTower() {
  if (state.value?.picture && state.value.known) trigger("enter", { patch: state.patch });
}

function showTower(within) {
  state.within = within;
  towerLook.cell = within && { layer: within.layers - 1, head: 0 };
  part(".tower").hidden = !within;
  if (within) {
    within.levels = Uint8Array.from(atob(within.maps), (letter) => letter.charCodeAt(0));
    paintTower(within);
  }
  redraw();
}

function paintTower({ layers, heads, levels }) {
  const side = state.value.picture.grid;
  Object.assign(towerPixels, { width: heads * side, height: layers * side });
  const pen = towerPixels.getContext("2d");
  const pixels = pen.createImageData(towerPixels.width, towerPixels.height);
  levels.forEach((level, i) => {
    const [map, patch] = [Math.floor(i / side ** 2), i % side ** 2];
    const row = Math.floor(map / heads) * side + Math.floor(patch / side);
    const column = (map % heads) * side + (patch % side);
    pixels.data.set([...rampAt(level / 255), 255], 4 * (row * towerPixels.width + column));
  });
  pen.putImageData(pixels, 0, 0);
}

function drawTower() {
  if (!state.within || !tower.parentElement.clientWidth) return;
  const { layers, heads } = state.within;
  const cell = Math.min(56, Math.floor(tower.parentElement.clientWidth / heads), Math.max(10, Math.floor(460 / layers)));
  Object.assign(tower.style, { width: `${cell * heads}px`, height: `${cell * layers}px` });
  const pen = penOf(tower, cell * heads, cell * layers);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(towerPixels, 0, 0, cell * heads, cell * layers);
  for (let head = 1; head < heads; head++) pen.clearRect(head * cell - 1, 0, 2, cell * layers);
  for (let layer = 1; layer < layers; layer++) pen.clearRect(0, layer * cell - 1, cell * heads, 2);
  const { layer, head } = towerLook.cell;
  for (const [width, colour] of [[4, "#000000"], [2, "#ffffff"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.strokeRect(head * cell + 2, layer * cell + 2, cell - 4, cell - 4);
  }
  part(".tower .of").textContent = `patch ${state.within.patch}`;
  part(".tower-told").textContent = `Layer ${layer}, head ${head} lies on the picture.`;
}

// On the enlarged picture: the map of the chosen layer and head.
function drawTowerHeat(pen, step) {
  drawTower();
  if (!state.within) return;
  const side = state.value.picture.grid;
  const { layer, head } = towerLook.cell;
  const start = (layer * state.within.heads + head) * side ** 2;
  for (let patch = 0; patch < side ** 2; patch++) {
    const level = state.within.levels[start + patch];
    pen.fillStyle = `rgba(${rampAt(level / 255)}, ${0.45 + (0.4 * level) / 255})`;
    pen.fillRect((patch % side) * step, Math.floor(patch / side) * step, step, step);
  }
}

function moveTower(layer, head) {
  if (!state.within) return;
  const { layers, heads } = state.within;
  const within = (value, count) => Math.max(0, Math.min(count - 1, value));
  towerLook.cell = { layer: within(layer, layers), head: within(head, heads) };
  redraw();
}

for (const kind of ["pointermove", "pointerdown"]) {
  tower.addEventListener(kind, (event) => {
    const bounds = tower.getBoundingClientRect();
    const { layers, heads } = state.within;
    const layer = Math.floor(((event.clientY - bounds.top) / bounds.height) * layers);
    moveTower(layer, Math.floor(((event.clientX - bounds.left) / bounds.width) * heads));
  });
}
tower.addEventListener("keydown", (event) => {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (!steps[event.key] || !towerLook.cell) return;
  event.preventDefault();
  moveTower(towerLook.cell.layer + steps[event.key][0], towerLook.cell.head + steps[event.key][1]);
});
