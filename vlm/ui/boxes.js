// Boxes: masks, boxes that grow edge by edge, and their labels.

// Okabe and Ito's colours, which people with any colour vision tell apart.
const HUES = ["#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#0072b2"];
const hueOf = (index) => HUES[index % HUES.length];

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
