// Picture: the image, the heat over it, masks, and boxes that grow edge by edge.

// Okabe and Ito's colours, which people with any colour vision tell apart.
const HUES = ["#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#0072b2"];
const hueOf = (index) => HUES[index % HUES.length];

const stage = element.querySelector(".stage");
const canvas = stage.querySelector("canvas");
const heatCanvas = document.createElement("canvas");
const backdrop = document.createElement("canvas"); // the image at its shown size
const picture = { url: "", image: null, masks: new Map(), frame: null };

function loadPicture(file) {
  const url = file ? file.url : "";
  if (url === picture.url) return;
  Object.assign(picture, { url, image: null });
  picture.masks.clear();
  if (!url) return;
  const image = new Image();
  image.onload = () => {
    if (url !== picture.url) return;
    picture.image = image;
    redraw();
  };
  image.src = url;
}

// Where the image stands in the stage, in CSS pixels.
function frameOf(width, height) {
  const room = [stage.clientWidth, stage.clientHeight];
  const scale = Math.min(room[0] / width, room[1] / height);
  const [w, h] = [width * scale, height * scale];
  return { x: (room[0] - w) / 2, y: (room[1] - h) / 2, w, h, scale };
}

function drawPicture() {
  const ratio = window.devicePixelRatio || 1;
  fit(canvas, stage.clientWidth * ratio, stage.clientHeight * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  picture.frame = null;
  if (!picture.image) return;
  const frame = (picture.frame = frameOf(state.value.width, state.value.height));
  drawBackdrop(frame, ratio);
  pen.drawImage(backdrop, frame.x, frame.y, frame.w, frame.h);
  drawHeat(pen, frame);
  state.value.objects.forEach((object, i) => drawMask(pen, frame, object, i));
  state.value.objects.forEach((object, i) => drawObject(pen, frame, object, i));
  drawLoc(pen, frame);
  drawPatch(pen, frame);
}

function fit(surface, width, height) {
  const [w, h] = [Math.round(width), Math.round(height)];
  if (surface.width === w && surface.height === h) return false;
  Object.assign(surface, { width: w, height: h });
  return true;
}

// Scaling the image is the dearest part of a frame, so it is done once for a size.
function drawBackdrop(frame, ratio) {
  const fresh = fit(backdrop, frame.w * ratio, frame.h * ratio);
  if (!fresh && backdrop.dataset.url === picture.url) return;
  const pen = backdrop.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture.image, 0, 0, backdrop.width, backdrop.height);
  backdrop.dataset.url = picture.url;
}

function drawHeat(pen, frame) {
  const heat = heatOf(state.chosen, state.layer, headShown());
  canvas.dataset.heat = heat ? state.chosen.join() : "";
  if (!heat || !state.strength) return;
  // A little dark first, so that heat is seen on bright pictures too.
  pen.fillStyle = `rgba(12, 10, 34, ${0.5 * state.strength})`;
  pen.fillRect(frame.x, frame.y, frame.w, frame.h);
  paintHeat(heatCanvas, heat, state.raw, (level) => Math.min(1, 0.1 + 1.1 * level));
  pen.save();
  pen.globalAlpha = state.strength;
  pen.globalCompositeOperation = state.blocks ? "source-over" : "screen";
  pen.imageSmoothingEnabled = !state.blocks;
  pen.drawImage(heatCanvas, frame.x, frame.y, frame.w, frame.h);
  pen.restore();
  if (state.blocks) drawGrid(pen, frame);
}

function drawGrid(pen, frame) {
  pen.beginPath();
  for (let c = 1; c < shape.columns; c++) {
    pen.moveTo(frame.x + (c * frame.w) / shape.columns, frame.y);
    pen.lineTo(frame.x + (c * frame.w) / shape.columns, frame.y + frame.h);
  }
  for (let r = 1; r < shape.rows; r++) {
    pen.moveTo(frame.x, frame.y + (r * frame.h) / shape.rows);
    pen.lineTo(frame.x + frame.w, frame.y + (r * frame.h) / shape.rows);
  }
  pen.lineWidth = 1;
  pen.strokeStyle = "rgba(255, 255, 255, .16)";
  pen.stroke();
}

function drawMask(pen, frame, object, index) {
  if (!object.mask || object.box.includes(null)) return;
  const mask = tinted(object.mask, hueOf(index));
  const [x1, y1, x2, y2] = onStage(object.box, frame);
  if (mask) pen.drawImage(mask, x1, y1, x2 - x1, y2 - y1);
}

// The mask as a canvas of one colour; null until the browser has decoded it.
function tinted(url, color) {
  const name = color + url;
  if (picture.masks.has(name)) return picture.masks.get(name);
  picture.masks.set(name, null);
  const image = new Image();
  image.onload = () => {
    const surface = document.createElement("canvas");
    surface.width = image.width;
    surface.height = image.height;
    const pen = surface.getContext("2d");
    pen.drawImage(image, 0, 0);
    const pixels = pen.getImageData(0, 0, image.width, image.height);
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data.set([r, g, b, pixels.data[i] * 0.55], i);
    }
    pen.putImageData(pixels, 0, 0);
    picture.masks.set(name, surface);
    redraw();
  };
  image.src = url;
  return null;
}

function onStage(box, frame) {
  return box.map((edge, i) =>
    edge === null ? null : (i % 2 ? frame.y : frame.x) + edge * frame.scale);
}

function drawObject(pen, frame, object, index) {
  const [x1, y1, x2, y2] = onStage(object.box, frame);
  if (y1 === null) return;
  const chosen = state.object === index;
  pen.beginPath();
  if (x1 === null) {
    pen.moveTo(frame.x, y1);
    pen.lineTo(frame.x + frame.w, y1);
  } else if (x2 === null || y2 === null) {
    const [right, bottom] = [frame.x + frame.w, y2 === null ? frame.y + frame.h : y2];
    pen.moveTo(x1, bottom);
    pen.lineTo(x1, y1);
    pen.lineTo(right, y1);
    if (y2 !== null) pen.moveTo(x1, y2);
    if (y2 !== null) pen.lineTo(right, y2);
  } else {
    pen.rect(x1, y1, x2 - x1, y2 - y1);
  }
  const open = object.box.includes(null);
  stroke(pen, hueOf(index), chosen ? 3.5 : 2.25, open ? [8, 6] : []);
  if (x1 !== null) drawLabel(pen, frame, object, x1, y1, hueOf(index));
}

function stroke(pen, color, width, dash) {
  pen.setLineDash(dash);
  pen.strokeStyle = "rgba(0, 0, 0, .45)";
  pen.lineWidth = width + 2;
  pen.stroke();
  pen.strokeStyle = color;
  pen.lineWidth = width;
  pen.stroke();
  pen.setLineDash([]);
}

function drawLabel(pen, frame, object, x, y, color) {
  const name = object.label || "…";
  const text = object.box.includes(null) ? name : `${name} ${object.confidence.toFixed(2)}`;
  pen.font = "600 12.5px ui-sans-serif, system-ui, sans-serif";
  const width = Math.min(pen.measureText(text).width + 12, frame.w);
  const top = y - 21 < frame.y ? y + 2 : y - 21;
  const left = Math.max(frame.x, Math.min(x - 1, frame.x + frame.w - width));
  pen.fillStyle = color;
  pen.beginPath();
  pen.roundRect(left, top, width, 19, 4);
  pen.fill();
  pen.fillStyle = "#16161a";
  pen.fillText(text, left + 6, top + 14, width - 12);
}

// The line that the chosen <loc> token means, and what else it might have been.
function drawLoc(pen, frame) {
  const edge = chosenEdge();
  if (!edge) return;
  const across = edge.axis === "y";
  const at = (bin) => (across ? frame.y + (bin / 1024) * frame.h : frame.x + (bin / 1024) * frame.w);
  pen.beginPath();
  if (across) pen.rect(frame.x, at(edge.bin) - 0.75, frame.w, 1.5);
  else pen.rect(at(edge.bin) - 0.75, frame.y, 1.5, frame.h);
  pen.fillStyle = "rgba(255, 255, 255, .9)";
  pen.fill();
  pen.fillStyle = hueOf(edge.object);
  for (const { bin, probability } of edge.candidates) {
    const length = 60 * probability;
    if (across) pen.fillRect(frame.x + frame.w - length, at(bin) - 2, length, 4);
    else pen.fillRect(at(bin) - 2, frame.y + frame.h - length, 4, length);
  }
}

function drawPatch(pen, frame) {
  if (state.patch === null) return;
  const [w, h] = [frame.w / shape.columns, frame.h / shape.rows];
  const [row, column] = [Math.floor(state.patch / shape.columns), state.patch % shape.columns];
  pen.beginPath();
  pen.rect(frame.x + column * w, frame.y + row * h, w, h);
  stroke(pen, "#ffffff", 2, []);
}

// Patch (r, c) covers a share of the width and of the height: the model sees the
// image stretched to a square, whatever its sides are.
function patchUnder(event) {
  const spot = spotUnder(event);
  if (!spot) return null;
  const column = Math.floor((spot.x / state.value.width) * shape.columns);
  const row = Math.floor((spot.y / state.value.height) * shape.rows);
  return row * shape.columns + column;
}

// Pixels of the original image under the pointer; null beside it.
function spotUnder(event) {
  if (!picture.frame) return null;
  const bounds = canvas.getBoundingClientRect();
  const x = (event.clientX - bounds.left - picture.frame.x) / picture.frame.scale;
  const y = (event.clientY - bounds.top - picture.frame.y) / picture.frame.scale;
  const inside = x >= 0 && y >= 0 && x < state.value.width && y < state.value.height;
  return inside ? { x, y } : null;
}

// The smallest finished box around a spot, or -1.
function objectAt({ x, y }) {
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const holds = ([x1, y1, x2, y2]) => x1 <= x && x <= x2 && y1 <= y && y <= y2;
  let best = -1;
  state.value.objects.forEach(({ box }, i) => {
    if (box.includes(null) || !holds(box)) return;
    if (best < 0 || area(box) < area(state.value.objects[best].box)) best = i;
  });
  return best;
}
