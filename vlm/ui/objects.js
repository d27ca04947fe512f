// Objects: a row for each, to choose it and to show or hide it.

// Rows are made once and filled again, so that focus stays where it is.
function drawObjects() {
  const box = part(".objects");
  const { objects } = state.value;
  while (box.children.length > objects.length) box.lastChild.remove();
  while (box.children.length < objects.length) box.append(objectRow(box.children.length));
  objects.forEach((object, i) => fillObject(box.children[i], object, i));
  part(".none").hidden = objects.length > 0;
}

function objectRow(index) {
  const row = document.createElement("button");
  row.type = "button";
  row.append(...["i", "span", "code", "b"].map((name) => document.createElement(name)));
  row.firstChild.style.background = hueOf(index);
  row.addEventListener("click", () => chooseObject(index));
  return row;
}

function fillObject(row, object, index) {
  const open = object.box.includes(null);
  row.children[1].textContent = open ? `${object.label || ""} (decoding)`.trim() : object.label || "…";
  row.children[2].textContent = object.box.map((e) => (e === null ? "·" : Math.round(e))).join(", ");
  row.children[3].textContent = object.confidence.toFixed(2);
  row.setAttribute("aria-pressed", state.object === index);
  row.title = `Box from ${row.children[2].textContent} in pixels: left, top, right, bottom`;
}
