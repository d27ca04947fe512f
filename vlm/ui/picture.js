// Picture: the image, the heat over it, masks, and boxes that grow edge by edge.

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
  if (!picture.image || !stage.clientWidth) return; // no picture, or a hidden tab
  const frame = (picture.frame = frameOf(state.value.width, state.value.height));
  drawBackdrop(frame, ratio);
  copyBackdrop(pen, frame, ratio);
  drawHeat(pen, frame);
  if (!state.picture) drawFound(pen, frame);
  drawPatch(pen, frame);
  drawTools(pen, frame);
}

function drawFound(pen, frame) {
  state.value.objects.forEach((object, i) => drawMask(pen, frame, object, i));
  state.value.objects.forEach((object, i) => drawObject(pen, frame, object, i));
  drawEdges(pen, frame);
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

// From pixel to pixel: to scale it again by a part of one is slow.
function copyBackdrop(pen, frame, ratio) {
  pen.save();
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.drawImage(backdrop, Math.round(frame.x * ratio), Math.round(frame.y * ratio));
  pen.restore();
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
