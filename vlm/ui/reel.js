// Reel: the pictures of one question, in the order in which they were read. One is on
// the stage, and what lies on patches is of it; boxes lie on the first.

const reel = part(".reel");
const BOXES = "An answer does not say which picture a box is in: they are drawn on the first.";

function areSeveral() {
  return state.value.pictures.length > 1;
}

// What the value says of the first picture is said of the one that is shown.
function putOnStage(value) {
  if (state.picture >= value.pictures.length) state.picture = 0;
  Object.assign(value, value.pictures[state.picture]);
  shape.offset = state.picture * shape.patches;
}

function showPicture(number) {
  if (number === state.picture) return;
  state.picture = number;
  state.patch = null;
  putOnStage(state.value);
  // What was summed up was of the other picture's patches.
  maps.sums.clear();
  leasts.clear();
  loadPicture(state.value.image);
  say(`Picture ${number + 1} of ${state.value.pictures.length}`);
  redraw();
}

function drawReel() {
  const { pictures, objects } = state.value;
  reel.hidden = !areSeveral();
  part(".of-first").hidden = reel.hidden || !objects.length;
  if (reel.hidden) return;
  while (reel.children.length > pictures.length) reel.lastChild.remove();
  while (reel.children.length < pictures.length) reel.append(reelButton(reel.children.length));
  const parts = partsOf(state.chosen, layerShown(), headShown());
  const most = parts && Math.max(...parts);
  const looked = most && state.object >= 0 ? ` ${lookedWords(parts.indexOf(most))}` : "";
  write(part(".of-first"), BOXES + looked);
  pictures.forEach(({ image }, i) => fillReel(reel.children[i], i, image.url, parts?.[i], most));
}

function lookedWords(number) {
  return `The chosen one’s tokens looked most at picture ${number + 1}, in this layer and head.`;
}

function reelButton(number) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...["img", "b", "i", "span"].map((name) => document.createElement(name)));
  Object.assign(button.children[0], { alt: "", draggable: false });
  button.children[1].textContent = number + 1;
  button.addEventListener("click", () => showPicture(number));
  return button;
}

function fillReel(button, number, url, share, most) {
  const [image, , bar, words] = button.children;
  mark(image, "src", url);
  const seen = share === undefined ? "" : spaced(share);
  bar.style.setProperty("--part", share === undefined ? 0 : share / (most || 1));
  write(words, seen || "–");
  mark(button, "aria-pressed", number === state.picture);
  mark(button, "aria-label", `Picture ${number + 1}${seen && `: ${seen} of the attention`}`);
  mark(button, "title", seen ? `Of this layer and head’s attention, ${seen} is on picture ${number + 1}` : `Show picture ${number + 1}`);
}

// Of the attention that a heat is of, what lies on the picture that is shown.
function seenOf({ shares }) {
  return areSeveral() ? partsOf(state.chosen, layerShown(), headShown())[state.picture] : shares[0];
}

// The part of the attention of some tokens that lies on each picture; null before their
// maps came. Of several heads it is the mean.
function partsOf(keys, layer, head) {
  const known = keys.filter((key) => maps.kept.has(key));
  if (!known.length) return null;
  if (head === VARIED) return partsOf(known, layer, mostVaried(known, layer));
  return remembered(`${known}:${layer}:${head} by picture`, () => {
    const parts = new Float32Array(state.value.pictures.length);
    const [from, to] = headRange(head);
    for (const one of known.map((key) => maps.kept.get(key))) {
      for (let row = layer * shape.heads + from; row < layer * shape.heads + to; row++) {
        const scale = one.peaks[row] / (255 * 255 * known.length * (to - from));
        parts.forEach((_, i) => (parts[i] += scale * squares(one.levels, row * shape.stride + i * shape.patches)));
      }
    }
    return parts;
  });
}

function squares(levels, start) {
  let sum = 0;
  for (let i = start; i < start + shape.patches; i++) sum += levels[i] * levels[i];
  return sum;
}
