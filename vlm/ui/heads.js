// Heads: a thumbnail for each head of the layer. Pointing previews, clicking keeps.

const strip = part(".heads");
const headThumbs = thumbsOn(strip);
const layerInput = part(".layer input");
const layerOutput = part(".layer output");

const TOGETHER = {
  [MEAN]: ["mean", "Mean of all heads"],
  [MAX]: ["max", "Maximum of all heads, patch by patch"],
  [VARIED]: ["varied", "The head whose map varies most"],
};

// What there is to choose, in the order of the strip.
function looksOfHeads() {
  return [MEAN, MAX, VARIED, ...Array(shape.heads).keys()];
}

function buildHeads() {
  const names = looksOfHeads();
  strip.replaceChildren(...names.map(headButton));
  // In lines of about a dozen, all of one length.
  const lines = Math.ceil(names.length / 12);
  strip.style.setProperty("--columns", Math.ceil(names.length / lines));
  layerInput.max = shape.layers - 1;
  headThumbs.measure();
}

function headButton(head) {
  const button = document.createElement("button");
  const name = document.createElement("span");
  const [short, long] = TOGETHER[head] ?? [head, `Head ${head}`];
  name.textContent = short;
  button.type = "button";
  button.dataset.head = head;
  button.setAttribute("role", "radio");
  button.title = long;
  button.setAttribute("aria-label", long);
  button.append(thumbNode(), name);
  return button;
}

function drawHeads() {
  const pointed = state.preview && layerShown() === state.layer ? state.preview.head : null;
  const buttons = [...strip.querySelectorAll("button")];
  for (const button of buttons) {
    const head = Number(button.dataset.head);
    const locked = head === state.head;
    mark(button, "aria-checked", locked);
    button.tabIndex = locked ? 0 : -1;
    button.classList.toggle("preview", pointed === head);
  }
  headThumbs.draw(buttons.map(({ dataset }) => heatShown(state.chosen, state.layer, Number(dataset.head))));
  layerInput.value = state.layer;
  write(layerOutput, `${state.layer} / ${shape.layers - 1}`);
  mark(layerInput, "aria-valuetext", `layer ${state.layer} of ${shape.layers}`);
}

function headName(layer, head) {
  if (head === MEAN) return "mean of heads";
  if (head === MAX) return "maximum of heads";
  return head === VARIED ? `head ${headMeant(layer, head)}, which varies most` : `head ${head}`;
}

// The head that is shown as the one that varies most, once its map is known.
function headMeant(layer, head) {
  if (head !== VARIED) return head;
  const known = state.chosen.filter((key) => maps.kept.has(key));
  return known.length ? mostVaried(known, layer) : MEAN;
}

function headShown() {
  return state.preview ? state.preview.head : state.head;
}

function layerShown() {
  return state.preview?.layer ?? state.layer;
}

function preview(look) {
  state.preview = look;
  redraw();
}

function moveHead(head, focus) {
  explain.shown = null;
  state.head = Math.min(shape.heads - 1, head);
  preview(null);
  if (focus) strip.querySelector(`[data-head="${state.head}"]`).focus();
}

function moveLayer(layer) {
  explain.shown = null;
  state.layer = Math.max(0, Math.min(shape.layers - 1, layer));
  redraw();
}

layerInput.addEventListener("input", () => moveLayer(Number(layerInput.value)));
strip.addEventListener("pointerover", (event) => {
  const button = event.target.closest("button");
  if (button && event.pointerType !== "touch") preview({ head: Number(button.dataset.head) });
});
strip.addEventListener("pointerleave", () => preview(null));
strip.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) moveHead(Number(button.dataset.head), false);
});
strip.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const looks = looksOfHeads();
  moveHead(looks[Math.max(0, looks.indexOf(state.head) + step)] ?? state.head, true);
});
