// Heat: attention as colours over the picture.

// Dark violet to yellow: even steps in lightness, readable without colour vision.
const STOPS = [[38, 6, 70], [72, 48, 135], [38, 120, 142], [60, 188, 116], [253, 231, 37]];
const COLORS = Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(at));
  return STOPS[low].map((c, k) => Math.round(c + (STOPS[low + 1][k] - c) * (at - low)));
});

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

// Paints patches into a canvas of one pixel for each patch.
function paintHeat(canvas, heat, raw, alpha) {
  fit(canvas, shape.columns, shape.rows);
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(shape.columns, shape.rows);
  const full = (raw ? heat.ceiling : heat.peak) || 1;
  for (let i = 0; i < shape.patches; i++) {
    const level = Math.min(1, heat.patches[i] / full);
    pixels.data.set([...COLORS[Math.round(255 * level)], 255 * alpha(level)], i * 4);
  }
  pen.putImageData(pixels, 0, 0);
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

function drawPatch(pen, frame) {
  if (state.patch === null) return;
  const [w, h] = [frame.w / shape.columns, frame.h / shape.rows];
  const [row, column] = [Math.floor(state.patch / shape.columns), state.patch % shape.columns];
  pen.beginPath();
  pen.rect(frame.x + column * w, frame.y + row * h, w, h);
  stroke(pen, "#ffffff", 2, []);
}
