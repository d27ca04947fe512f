// The chosen cell: the picture with where its pooling looked, and its figures.

const FIGURES = ["cosine", "logit", "sigmoid", "softmax"];
const [picture, heat] = ["img", "canvas"].map((tag) => part(`.look ${tag}`));

function showCell() {
  const known = Boolean(state.logits && state.cell);
  part(".look .frame").hidden = !known;
  write(part(".text"), known ? state.texts[state.cell.column] : "");
  if (!known) {
    for (const name of FIGURES) write(part(`dd.${name}`), "–");
    write(part(".peak"), "");
    return;
  }
  const { row, column } = state.cell;
  write(part("#cell-title"), `Picture ${row + 1} and text ${column + 1}`);
  mark(part(".text"), "title", state.texts[column]);
  mark(picture, "alt", `Picture ${row + 1}, with where ${state.looker} looked`);
  write(part(".looker"), state.looker);
  mark(picture, "src", state.pictures[row].url);
  drawLook(state.looks[row]);
  tellFigures(state.logits[row], column);
}

function tellFigures(logits, column) {
  const cosine = (logits[column] - state.bias) / state.scale;
  const [alone, among] = ["sigmoid", "softmax"].map((way) => WAYS[way](logits, state.off)[column]);
  write(part("dd.cosine"), signed(cosine, 3));
  write(part("dd.logit"), signed(logits[column], 2));
  write(part("dd.sigmoid"), `${percent(alone)} %`);
  write(part("dd.softmax"), among === null ? "this text is off" : `${percent(among)} %`);
  const bias = state.bias === null ? "" : ` ${state.bias < 0 ? "−" : "+"} ${Math.abs(state.bias).toFixed(2)}`;
  write(part(".sum"), `Logit = ${state.scale.toFixed(2)} × cosine${bias}`);
}

// A pixel for each patch, laid over what was seen of the picture; bright on what is dimmed beneath.
function drawLook({ rows, columns, peak, levels, seen: [x1, y1, x2, y2] }) {
  const [left, top, width, height] = [x1, y1, x2 - x1, y2 - y1].map((share) => `${100 * share}%`);
  Object.assign(heat.style, { left, top, width, height });
  Object.assign(heat, { width: columns, height: rows });
  const pen = heat.getContext("2d");
  const pixels = pen.createImageData(columns, rows);
  [...atob(levels)].forEach((letter, patch) => {
    const level = letter.charCodeAt(0) / 255;
    pixels.data.set([...rampAt(level), Math.min(255, 25 + 280 * level)], 4 * patch);
  });
  pen.putImageData(pixels, 0, 0);
  write(part(".peak"), `The brightest patch has ${percent(peak)} % of the attention; ${percent(1 / (rows * columns))} % if it were even.`);
}

function signed(number, digits) {
  return number.toFixed(digits).replace("-", "−");
}

picture.addEventListener("load", () => {
  part(".look .frame").style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight);
});
part(".key i").style.background =
  `linear-gradient(90deg, ${Array.from({ length: 17 }, (_, i) => `rgb(${rampAt(i / 16)})`)})`;

watch("value", update);
watch("stopped_at", () => told(state.logits ? "done" : "failed"));
document.addEventListener("paliscope:match", () => told("running"));
update();
root.dataset.mounted = "true";
if (!state.logits && state.pictures.length) trigger("begin");
