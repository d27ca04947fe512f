// Patch: how much of the token comes back when a part of the unspoilt pass is put in.

const patching = { layer: null, before: false };
const patchLayer = part(".trial .at-layer input");

const PATCH = {
  mapped: false,
  ready: () => true,
  key: () => `${patchAt()} ${patchBefore()}`,
  told: () => ({ layer: patchAt(), before: patchBefore() }),

  draw(panel, found) {
    drawSpoilt(panel);
    write(panel.querySelector(".told-of"), found ? spoiltWords(found) : "");
    const layers = Array.from({ length: shape.layers + 1 }, (_, i) => i);
    const scale = scaleOf([...(found?.image ?? []), ...(found?.last ?? [])], 0, 1);
    fillRows(panel.querySelector(".mended"), layers, () => rowOf("b", "i", "span", "i", "span"), (row, _, i) => {
      const [name, image, ofImage, last, ofLast] = row.children;
      write(name, layerName(i - 1));
      for (const [bar, told, value] of [[image, ofImage, found?.image[i]], [last, ofLast, found?.last[i]]]) {
        setBar(bar, value ?? 0, scale);
        write(told, signed(value));
      }
    });
    const places = found?.positions ?? placesTried();
    const wide = scaleOf(places.map(({ score }) => score), 0, 1);
    fillRows(panel.querySelector(".places"), places, () => rowOf("b", "i", "span"), (row, { kind, text, score }) => {
      write(row.children[0], kind === "image" ? "image" : visible(text));
      mark(row, "title", kind);
      setBar(row.children[1], score ?? 0, wide);
      write(row.children[2], signed(score));
    });
  },

  words({ image, last, layers }) {
    const half = layers.find((_, i) => last[i] >= 0.5);
    const where = half === undefined ? "no layer" : `${layerName(half)} on`;
    return `the image brings back ${signed(image[0])} at the embedding; the last row half of it from ${where}`;
  },
};

// Until the reader sets it: the middle layer.
function patchAt() {
  return Math.min(patching.layer ?? Math.floor(shape.layers / 2), shape.layers - 1);
}

const patchBefore = () => patching.before && Boolean(state.value.before);

function drawSpoilt(panel) {
  patchLayer.min = -1;
  patchLayer.max = shape.layers - 1;
  patchLayer.value = patchAt();
  mark(patchLayer, "aria-valuetext", layerName(patchAt()));
  write(panel.querySelector("output"), `after ${layerName(patchAt())}`);
  for (const button of panel.querySelector(".spoilt").children) {
    const before = button.dataset.by === "before";
    button.disabled = before && !state.value.before;
    mark(button, "aria-pressed", before === patchBefore());
  }
}

function spoiltWords({ clean, corrupt }) {
  const by = patchBefore() ? "On the picture before" : "With noise on the image";
  return `${by}: ${spaced(clean)} → ${spaced(corrupt)}`;
}

// The rows that a result will have, before there is one.
function placesTried() {
  const token = Math.max(0, triedToken());
  const text = [...state.value.prompt, ...state.value.tokens.slice(0, token)].slice(-tests.positions);
  return [
    { kind: "image", text: "", score: null },
    { kind: "bos", text: "<bos>", score: null },
    ...text.map(({ text }) => ({ kind: "text", text, score: null })),
  ];
}

patchLayer.addEventListener("input", () => {
  patching.layer = Number(patchLayer.value);
  redraw();
});
part(".trial .spoilt").addEventListener("click", (event) => {
  const { by } = event.target.closest("button:enabled")?.dataset ?? {};
  if (!by) return;
  patching.before = by === "before";
  redraw();
});
