// Edges: the line that a <loc> token means, and a ridge of where it might have been.

const BINS = 1024;
const SIDES = ["top", "left", "bottom", "right"]; // in the order of an object's tokens
const RIDGE = { height: 46, share: 0.14, step: 3 }; // pixels, at most of the picture, pixels

function drawEdges(pen, frame) {
  if (state.object >= 0) drawFaintRidges(pen, frame);
  const edge = state.chosen.length === 1 ? edgeOf(state.chosen[0]) : null;
  if (!edge) return;
  drawLine(pen, frame, edge);
  if (!edge.bins) return;
  const height = ridgeHeight(frame);
  drawRidge(pen, frame, edge, height);
  drawSpread(pen, frame, edge, height + 9);
}

function drawFaintRidges(pen, frame) {
  pen.save();
  pen.globalAlpha = 0.7;
  for (const edge of keysOf(state.object).map(edgeOf)) {
    if (edge?.bins) drawRidge(pen, frame, edge, 0.6 * ridgeHeight(frame));
  }
  pen.restore();
}

// The edge that a token is; null if it is none.
function edgeOf(key) {
  const owner = ownerOf(key);
  const side = owner < 0 ? -1 : sideOf(key, owner);
  if (side < 0) return null;
  const bins = maps.kept.get(key)?.bins ?? null;
  return { side, axis: side % 2 ? "x" : "y", bin: binOf(tokenAt(key).text), object: owner, bins };
}

// Which of its object's four <loc> tokens it is.
function sideOf(key, owner) {
  const isLoc = (each) => tokenAt(each) && binOf(tokenAt(each).text) !== null;
  return keysOf(owner).filter(isLoc).indexOf(key);
}

function binOf(text) {
  const found = /^<loc(\d{4})>$/.exec(text.trim());
  return found ? Number(found[1]) : null;
}

function drawLine(pen, frame, { axis, bin }) {
  const share = bin / BINS;
  pen.fillStyle = "rgba(255, 255, 255, .9)";
  if (axis === "y") pen.fillRect(frame.x, frame.y + share * frame.h - 0.75, frame.w, 1.5);
  else pen.fillRect(frame.x + share * frame.w - 0.75, frame.y, 1.5, frame.h);
}

// Each side of a box has a border of its own, so that four ridges never meet.
function spotAt(frame, side, bin, depth) {
  const [x, y] = [frame.x + (bin / BINS) * frame.w, frame.y + (bin / BINS) * frame.h];
  const borders = [
    [frame.x + depth, y],
    [x, frame.y + depth],
    [frame.x + frame.w - depth, y],
    [x, frame.y + frame.h - depth],
  ];
  return borders[side];
}

function ridgeHeight(frame) {
  return Math.min(RIDGE.height, RIDGE.share * Math.min(frame.w, frame.h));
}

function drawRidge(pen, frame, { side, axis, object, bins }, height) {
  const length = axis === "x" ? frame.w : frame.h;
  const step = Math.ceil((RIDGE.step * BINS) / length);
  const sums = summed(bins, step);
  const peak = Math.max(...sums);
  const depths = sums.map((sum) => (height * sum) / peak);
  const seen = depths.map((depth) => depth > 0.5);
  const [first, last] = [seen.indexOf(true), seen.lastIndexOf(true)];
  pen.beginPath();
  pen.moveTo(...spotAt(frame, side, first * step, 0));
  for (let i = first; i <= last; i++) {
    const middle = Math.min(BINS, (i + 0.5) * step);
    pen.lineTo(...spotAt(frame, side, middle, depths[i]));
  }
  pen.lineTo(...spotAt(frame, side, Math.min(BINS, (last + 1) * step), 0));
  pen.closePath();
  pen.fillStyle = hueOf(object);
  pen.fill();
  pen.lineWidth = 1;
  pen.strokeStyle = "rgba(0, 0, 0, .55)";
  pen.stroke();
}

// A bracket from one deviation before the mean to one after it, and a tick at the mean.
function drawSpread(pen, frame, { side, bins }, depth) {
  const { mean, deviation } = spreadOf(bins);
  const ends = [mean - deviation, mean + deviation];
  pen.beginPath();
  pen.moveTo(...spotAt(frame, side, ends[0], depth));
  pen.lineTo(...spotAt(frame, side, ends[1], depth));
  for (const [at, size] of [[ends[0], 3], [mean, 5], [ends[1], 3]]) {
    pen.moveTo(...spotAt(frame, side, at, depth - size));
    pen.lineTo(...spotAt(frame, side, at, depth + size));
  }
  stroke(pen, "#ffffff", 1.25, []);
}

// Probabilities of `step` bins together: one bin is less than a pixel of most screens.
function summed(bins, step) {
  const sums = new Array(Math.ceil(BINS / step)).fill(0);
  bins.forEach((p, bin) => (sums[Math.floor(bin / step)] += p));
  return sums;
}

// The mean bin and the standard deviation, in bins.
function spreadOf(bins) {
  let [total, first, second] = [0, 0, 0];
  bins.forEach((p, bin) => {
    total += p;
    first += p * bin;
    second += p * bin * bin;
  });
  const mean = first / total;
  return { mean, deviation: Math.sqrt(Math.max(0, second / total - mean * mean)) };
}
