// The cache as bars, the parts as a table, and a box worked out from its tokens.

function showCache(lengths) {
  const most = Math.max(...lengths.map(({ tokens }) => tokens));
  part(".bars").replaceChildren(...lengths.map(({ name, tokens, size }) => {
    const row = document.createElement("div");
    const bar = document.createElement("i");
    row.setAttribute("role", "listitem");
    bar.style.setProperty("--part", `${(100 * tokens) / most}%`);
    row.append(cellWith("span", name), bar, cellWith("b", size), cellWith("small", `${tokens} tokens`));
    return row;
  }));
}

function showParts(parts) {
  part(".shares").replaceChildren(...parts.map(({ parameters, cells: [name] }) => {
    const piece = document.createElement("i");
    piece.dataset.name = name;
    piece.style.flexGrow = parameters;
    return piece;
  }));
  part("#inside-parts").closest("section").querySelector("tbody").replaceChildren(...parts.map(({ cells }) => {
    const row = tableRow(cells);
    row.dataset.name = cells[0];
    return row;
  }));
}

function showBox(box) {
  part(".found").hidden = !box;
  part(".none").hidden = Boolean(box);
  if (!box) return;
  part(".edges caption").textContent = `The first box: ${box.label || "without a label"}`;
  part(".edges tbody").replaceChildren(...box.rows.map(tableRow));
  part(".unfold").hidden = !box.mask;
  part(".codes").replaceChildren(...box.codes.map((code) => cellWith("span", code)));
  part(".codes").setAttribute("aria-label", `Codes of the mask: ${box.codes.join(", ")}`);
  if (box.mask) part("img.mask").src = box.mask;
}

function drawPlaced() {
  const { box, picture } = state.value;
  const canvas = part(".placed");
  const mask = part("img.mask");
  if (!box?.mask || !original.naturalWidth || !mask.naturalWidth) return;
  const [width, height] = [canvas.clientWidth, (canvas.clientWidth * picture.height) / picture.width];
  canvas.style.height = `${height}px`;
  const pen = penOf(canvas, width, height);
  pen.drawImage(original, 0, 0, width, height);
  const [x1, y1, x2, y2] = box.box.map((edge, i) => (i % 2 ? edge / picture.height * height : edge / picture.width * width));
  pen.drawImage(tinted(mask), x1, y1, x2 - x1, y2 - y1);
  pen.strokeStyle = "#ffffff";
  pen.lineWidth = 2;
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
}

// Levels of grey become how much of a colour there is.
function tinted(mask) {
  const sheet = document.createElement("canvas");
  Object.assign(sheet, { width: mask.naturalWidth, height: mask.naturalHeight });
  const pen = sheet.getContext("2d");
  pen.drawImage(mask, 0, 0);
  const pixels = pen.getImageData(0, 0, sheet.width, sheet.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data.set([59, 91, 219, pixels.data[i] * 0.7], i);
  }
  pen.putImageData(pixels, 0, 0);
  return sheet;
}

function tableRow([head, ...cells]) {
  const row = document.createElement("tr");
  const name = cellWith("th", head);
  name.scope = "row";
  row.append(name, ...cells.map((text) => cellWith("td", text)));
  return row;
}

function cellWith(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

for (const image of [original, part("img.mask")]) image.addEventListener("load", drawPlaced);
