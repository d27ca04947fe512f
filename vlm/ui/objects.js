// Objects: a row for each, to choose it and to show or hide it.

// Rows are made once and filled again, so that focus stays where it is.
function drawObjects() {
  const box = part(".objects");
  const { objects } = state.value;
  while (box.children.length > objects.length) box.lastChild.remove();
  while (box.children.length < objects.length) box.append(objectRow(box.children.length));
  objects.forEach((object, i) => fillObject(box.children[i], object, i));
  part(".none").hidden = objects.length > 0;
  part(".all").hidden = objects.length < 2;
  const some = state.hidden.size < objects.length ? "mixed" : false;
  mark(part(".all"), "aria-pressed", state.hidden.size ? some : true);
  part(".threshold").hidden = !objects.some(({ mask }) => mask);
}

function objectRow(index) {
  const row = document.createElement("div");
  const [pick, eye] = ["pick", "eye"].map((name) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: name });
    return button;
  });
  pick.append(...["i", "span", "b", "code", "small"].map((name) => document.createElement(name)));
  Object.assign(pick.firstChild.style, { background: hueOf(index), color: inkOn(index) });
  pick.firstChild.dataset.number = index + 1;
  pick.addEventListener("click", () => chooseObject(index));
  eye.addEventListener("click", () => showObject(index, state.hidden.has(index)));
  row.append(pick, eye);
  return row;
}

function fillObject(row, { label, box, confidence, duplicate }, index) {
  const [pick, eye] = row.children;
  const [, name, sure, edges, note] = pick.children;
  const shown = !state.hidden.has(index);
  write(name, box.includes(null) ? `${label} (decoding)`.trim() : label || "…");
  write(sure, confidence.toFixed(2));
  write(edges, box.map((edge) => (edge === null ? "·" : Math.round(edge))).join(", "));
  write(note, duplicate === null ? maskNote(index) : `again: same as ${duplicate + 1}`);
  mark(pick, "title", `Box from ${edges.textContent} in pixels: left, top, right, bottom`);
  mark(pick, "aria-pressed", state.object === index);
  row.classList.toggle("lit", isLit(index));
  row.classList.toggle("unseen", !shown);
  mark(eye, "title", shown ? "Hide its box and mask" : "Show its box and mask");
  mark(eye, "aria-label", `Show ${index + 1}, ${label || "…"}, on the picture`);
  mark(eye, "aria-pressed", shown);
}

// The first object is the mask that the answer was begun with.
function maskNote(index) {
  const { mask_iou: iou } = state.value;
  return index || iou === null ? "" : `yours: IoU ${iou.toFixed(2)}`;
}

function showObject(index, shown) {
  if (shown) state.hidden.delete(index);
  else state.hidden.add(index);
  redraw();
}

part(".all").addEventListener("click", () => {
  const shown = state.hidden.size > 0;
  state.value.objects.forEach((_, i) => showObject(i, shown));
});
part(".threshold input").addEventListener("input", (event) => {
  state.threshold = Number(event.target.value);
  const words = state.threshold ? `cut at ${state.threshold.toFixed(2)}` : "soft";
  part(".threshold output").textContent = words;
  event.target.setAttribute("aria-valuetext", words);
  redraw();
});
