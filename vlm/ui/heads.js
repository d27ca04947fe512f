// Heads: a thumbnail for each head of the layer. Pointing previews, clicking keeps.

const strip = element.querySelector(".heads");
const layerInput = element.querySelector(".layer input");
const layerOutput = element.querySelector(".layer output");

function buildHeads() {
  const names = [MEAN, ...Array(shape.heads).keys()];
  strip.replaceChildren(...names.map(headButton));
  layerInput.max = shape.layers - 1;
}

function headButton(head) {
  const button = document.createElement("button");
  const name = document.createElement("span");
  name.textContent = head === MEAN ? "mean" : head;
  button.type = "button";
  button.dataset.head = head;
  button.setAttribute("role", "radio");
  button.setAttribute("aria-label", head === MEAN ? "Mean of all heads" : `Head ${head}`);
  button.append(document.createElement("canvas"), name);
  return button;
}

function drawHeads() {
  for (const button of strip.children) {
    const head = Number(button.dataset.head);
    const locked = head === state.head;
    button.setAttribute("aria-checked", locked);
    button.tabIndex = locked ? 0 : -1;
    button.classList.toggle("preview", state.preview === head);
    const surface = button.firstChild;
    const heat = heatOf(state.chosen, state.layer, head);
    if (heat) paintHeat(surface, heat, state.raw, () => 1);
    else surface.getContext("2d").clearRect(0, 0, surface.width, surface.height);
  }
  layerInput.value = state.layer;
  layerOutput.textContent = `${state.layer} / ${shape.layers - 1}`;
  layerInput.setAttribute("aria-valuetext", `layer ${state.layer} of ${shape.layers}`);
}

function headShown() {
  return state.preview === null ? state.head : state.preview;
}

function moveHead(head, focus) {
  state.head = Math.max(MEAN, Math.min(shape.heads - 1, head));
  state.preview = null;
  redraw();
  if (focus) strip.children[state.head + 1].focus();
}

function moveLayer(layer) {
  state.layer = Math.max(0, Math.min(shape.layers - 1, layer));
  redraw();
}

layerInput.addEventListener("input", () => moveLayer(Number(layerInput.value)));
strip.addEventListener("pointerover", (event) => {
  const button = event.target.closest("button");
  if (!button || event.pointerType === "touch") return;
  state.preview = Number(button.dataset.head);
  redraw();
});
strip.addEventListener("pointerleave", () => {
  state.preview = null;
  redraw();
});
strip.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) moveHead(Number(button.dataset.head), false);
});
strip.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  moveHead(state.head + step, true);
});
