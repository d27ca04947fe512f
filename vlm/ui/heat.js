// Heat: attention as colours over the picture, and what its colours mean.

const STEPS = 1023;
const inks = { contrast: null, solid: new Uint32Array(STEPS + 1), veil: new Uint32Array(STEPS + 1) };

function drawHeat(pen, frame) {
  const heat = wayShown() ?? heatShown(state.chosen, layerShown(), headShown());
  canvas.dataset.heat = heat ? state.chosen.join() : "";
  if (!heat || !state.strength) return;
  // A little dark first, so that heat is seen on bright pictures too.
  pen.fillStyle = `rgba(12, 10, 34, ${0.5 * state.strength})`;
  pen.fillRect(frame.x, frame.y, frame.w, frame.h);
  paintHeat(heatCanvas, heat, inked().veil);
  pen.save();
  pen.globalAlpha = state.strength;
  pen.globalCompositeOperation = state.blocks ? "source-over" : "screen";
  pen.imageSmoothingEnabled = !state.blocks;
  pen.drawImage(heatCanvas, frame.x, frame.y, frame.w, frame.h);
  pen.restore();
  if (state.blocks) drawGrid(pen, frame);
}

// The heat of some tokens on the scale that was chosen.
function heatShown(keys, layer, head) {
  return (state.scale === "sinks" ? heatWithoutSinks : heatOf)(keys, layer, head);
}

// The attention that a patch of the brightest colour has.
function fullOf(heat) {
  return state.scale === "raw" ? heat.ceiling : heat.peak;
}

// Paints patches into a canvas of one pixel for each patch.
function paintHeat(surface, heat, ink) {
  fit(surface, shape.columns, shape.rows);
  const pen = surface.getContext("2d");
  const pixels = pen.createImageData(shape.columns, shape.rows);
  inkPatches(new Uint32Array(pixels.data.buffer), 0, shape.columns, heat, ink);
  pen.putImageData(pixels, 0, 0);
}

// Into pixels of `width`, from `start` on, a row of patches under the other.
function inkPatches(pixels, start, width, heat, ink) {
  const scale = STEPS / (fullOf(heat) || 1);
  for (let r = 0, i = 0; r < shape.rows; r++) {
    for (let c = 0; c < shape.columns; c++, i++) {
      const step = (heat.patches[i] * scale + 0.5) | 0;
      pixels[start + r * width + c] = ink[step > STEPS ? STEPS : step];
    }
  }
}

// Colours by level, at the contrast that is set: solid ones, and those for the
// picture, where little heat hides little.
function inked() {
  if (inks.contrast === state.contrast) return inks;
  inks.contrast = state.contrast;
  for (let step = 0; step <= STEPS; step++) {
    const level = contrasted(step / STEPS);
    const [r, g, b] = rampAt(level);
    const color = (b << 16) | (g << 8) | r;
    inks.solid[step] = (255 << 24) | color;
    inks.veil[step] = (Math.min(255, 25 + 280 * level) << 24) | color;
  }
  return inks;
}

// Contrast runs from -1 to 1; at 0 a level stays what it is.
const contrasted = (level) => level ** (4 ** state.contrast);

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

function drawLegend() {
  const heat = wayShown() ?? heatShown(state.chosen, layerShown(), headShown());
  const whole = !heat || state.scale === "raw" ? 1 : heat.mass || 1;
  write(part(".peak"), heat ? spaced(fullOf(heat) / whole) : "–");
  write(part(".on"), areSeveral() ? "on this picture" : "on the image");
  write(part(".seen"), heat?.shares ? spaced(seenOf(heat)) : "–");
  const sinks = heat?.shares && state.scale === "sinks" ? sinkWords(heat) : "";
  write(part(".left-out"), heat?.title ?? sinks);
  const note = state.patch !== null && heat ? patchWords() : gridWords();
  write(part(".note"), note);
  mark(part(".note"), "title", note);
  const ramp = part(".legend i");
  if (ramp.dataset.contrast === String(state.contrast)) return;
  ramp.dataset.contrast = state.contrast;
  const stops = Array.from({ length: 17 }, (_, i) => `rgb(${rampAt(contrasted(i / 16))})`);
  ramp.style.background = `linear-gradient(90deg, ${stops})`;
}

function sinkWords({ sinks, gone }) {
  if (!sinks) return "no sinks here";
  return `${sinks} ${sinks === 1 ? "sink" : "sinks"} left out: ${spaced(gone)}`;
}

// The attention itself, whatever the scale of the colours is.
function patchWords() {
  const heat = wayShown() ?? heatOf(state.chosen, layerShown(), headShown());
  const [row, column] = [Math.floor(state.patch / shape.columns), state.patch % shape.columns];
  const where = `Row ${row + 1}, column ${column + 1}`;
  if (!heat) return where;
  const here = heat.patches[state.patch];
  const percentage = Number(((100 * here) / (heat.mass || 1)).toPrecision(3));
  return `${where}: ${here.toPrecision(3)}, ${percentage} % of the image's`;
}

// The model sees any picture squeezed into a square; its patches are not square here.
function gridWords() {
  const { width, height, image_size: side } = state.value;
  if (!width) return "";
  const size = [width / shape.columns, height / shape.rows].map((s) => Number(s.toFixed(1)));
  const seen = `${width === height ? "at" : "squeezed to"} ${side} × ${side} for the model`;
  return `${shape.columns} × ${shape.rows} patches of ${size.join(" × ")} px, ${seen}`;
}

part(".scale").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  state.scale = button.dataset.scale;
  for (const each of event.currentTarget.children) each.setAttribute("aria-pressed", each === button);
  // What all rows have in common is known when their maps are here.
  if (state.scale === "sinks") fetchMaps(allKeys().slice(0, 64)).then(redraw);
  redraw();
});
part(".patches").addEventListener("click", (event) => {
  state.blocks = !state.blocks;
  event.currentTarget.setAttribute("aria-pressed", state.blocks);
  redraw();
});
part(".heat input").addEventListener("input", (event) => {
  state.strength = event.target.value / 100;
  redraw();
});
part(".contrast input").addEventListener("input", (event) => {
  state.contrast = event.target.value / 100;
  redraw();
});
