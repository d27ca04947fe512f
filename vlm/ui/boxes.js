// Boxes: masks, boxes that grow edge by edge, and their labels.

// Okabe and Ito's colours, which people with any colour vision tell apart. From the
// eighth object on they come again: the number on each box tells them apart.
const HUES = ["#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#0072b2"];
const hueOf = (index) => HUES[index % HUES.length];
const inkOn = (index) => (hueOf(index) === "#0072b2" ? "#ffffff" : "#16161a");
const FAINT = 0.55;

function drawMask(pen, frame, object, index) {
  if (!object.mask || object.box.includes(null) || state.hidden.has(index)) return;
  const mask = tinted(object.mask, hueOf(index));
  if (!mask) return;
  const [x1, y1, x2, y2] = onStage(object.box, frame);
  pen.save();
  if (object.duplicate !== null) pen.globalAlpha = FAINT;
  pen.drawImage(mask, x1, y1, x2 - x1, y2 - y1);
  pen.restore();
}

function drawObject(pen, frame, object, index) {
  const [x1, y1, x2, y2] = onStage(object.box, frame);
  if (y1 === null || state.hidden.has(index)) return;
  const again = object.duplicate !== null;
  const open = object.box.includes(null);
  pen.save();
  if (again) pen.globalAlpha = FAINT;
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
  const dash = open ? [8, 6] : again ? [3, 5] : [];
  stroke(pen, hueOf(index), isLit(index) ? 3.5 : 2.25, dash);
  if (x1 !== null) drawLabel(pen, frame, object, index, x1, y1);
  pen.restore();
}

// An object is lit when it is chosen, or one of its tokens is.
function isLit(index) {
  if (state.object >= 0) return state.object === index;
  return keysOf(index).some((key) => state.chosen.includes(key));
}

function onStage(box, frame) {
  return box.map((edge, i) =>
    edge === null ? null : (i % 2 ? frame.y : frame.x) + edge * frame.scale);
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

function drawLabel(pen, frame, object, index, x, y) {
  const number = state.value.objects.length > 1 ? `${index + 1}  ` : "";
  const sure = object.box.includes(null) ? "" : ` ${object.confidence.toFixed(2)}`;
  const text = `${number}${object.label || "…"}${sure}`;
  pen.font = "600 12.5px ui-sans-serif, system-ui, sans-serif";
  const width = Math.min(pen.measureText(text).width + 12, frame.w);
  const top = y - 21 < frame.y ? y + 2 : y - 21;
  const left = Math.max(frame.x, Math.min(x - 1, frame.x + frame.w - width));
  pen.fillStyle = hueOf(index);
  pen.beginPath();
  pen.roundRect(left, top, width, 19, 4);
  pen.fill();
  pen.fillStyle = inkOn(index);
  pen.fillText(text, left + 6, top + 14, width - 12);
}

// The smallest finished box around a spot, or -1.
function objectAt({ x, y }) {
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const holds = ([x1, y1, x2, y2]) => x1 <= x && x <= x2 && y1 <= y && y <= y2;
  let best = -1;
  if (state.picture) return best;
  state.value.objects.forEach(({ box }, i) => {
    if (state.hidden.has(i) || box.includes(null) || !holds(box)) return;
    if (best < 0 || area(box) < area(state.value.objects[best].box)) best = i;
  });
  return best;
}

// The mask as a canvas of one colour; null until the browser has decoded it.
function tinted(url, color) {
  if (!picture.masks.has(url)) loadMask(url);
  const mask = picture.masks.get(url);
  const look = color + state.threshold;
  if (mask && mask.look !== look) tint(mask, color);
  return mask && Object.assign(mask, { look }).surface;
}

function loadMask(url) {
  picture.masks.set(url, null);
  const image = new Image();
  image.onload = () => {
    const surface = document.createElement("canvas");
    fit(surface, image.width, image.height);
    const pen = surface.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    const grey = pen.getImageData(0, 0, image.width, image.height).data;
    picture.masks.set(url, { surface, grey, look: "" });
    redraw();
  };
  image.src = url;
}

// As soft as it was decoded, or cut at the threshold.
function tint({ surface, grey }, color) {
  const pen = surface.getContext("2d");
  const pixels = pen.createImageData(surface.width, surface.height);
  const rgb = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  for (let i = 0; i < grey.length; i += 4) {
    const share = state.threshold ? Number(grey[i] >= 255 * state.threshold) : grey[i] / 255;
    pixels.data.set([...rgb, 255 * 0.55 * share], i);
  }
  pen.putImageData(pixels, 0, 0);
}
