// The sequence as a strip of tokens, and the mask: who among them may look at whom.

const strip = part(".strip");
const KINDS = { image: "image", bos: "begins the text", prompt: "prompt", newline: "ends the prompt", answer: "answer" };

function showSequence(tokens, images) {
  const image = { text: `‹image› × ${images}`, at: `0–${images - 1}`, kind: "image" };
  const text = tokens.map(([, piece, kind], i) => ({ text: shownPiece(piece), at: images + i, kind }));
  strip.replaceChildren(...(tokens.length ? [image, ...text] : []).map(chip));
  // The newline: its row leads to the first token of the answer.
  state.token = tokens.findIndex(([, , kind]) => kind === "newline") + 1;
  drawChosen();
}

function chip({ text, at, kind }, index) {
  const node = document.createElement("span");
  const place = document.createElement("small");
  Object.assign(node, { className: "chip", id: `inside-token-${index}` });
  Object.assign(node.dataset, { kind, index });
  node.setAttribute("role", "option");
  place.textContent = at;
  node.append(text, place);
  return node;
}

// The chosen token in the strip and in the masks, and what there is to say of it.
function drawChosen() {
  for (const node of strip.children) {
    node.setAttribute("aria-selected", Number(node.dataset.index) === state.token);
  }
  const chosen = strip.children[state.token];
  strip.setAttribute("aria-activedescendant", chosen?.id || "");
  part(".token").textContent = chosen ? tokenTold(state.token) : "";
  const masks = state.value.masks || [];
  part(".sees").textContent = masks.map((mask) => seesTold(mask, masks.length > 1)).join(" ");
  for (const figure of part(".masks").children) markRow(figure);
}

function tokenTold(index) {
  const { tokens, images, ids } = state.value;
  if (!index) {
    const { first } = ids.find(({ name }) => name === "<image>");
    return `Positions 0 to ${images - 1}: id ${first}, “<image>”, ${images} times. Image features take their places.`;
  }
  const [id, piece, kind] = tokens[index - 1];
  return `Position ${images + index - 1}: id ${id}, “${shownPiece(piece)}”, ${KINDS[kind]}.`;
}

// A space in front is part of the piece.
function shownPiece(piece) {
  const text = piece.replaceAll("\n", "⏎");
  return text.replace(/^ +/, (spaces) => "·".repeat(spaces.length));
}

function showIds(ids) {
  const total = ids.reduce((sum, { count }) => sum + count, 0);
  part(".ids").replaceChildren(...ids.map(({ name, first, count }) => {
    const node = document.createElement("div");
    const range = document.createElement("small");
    node.setAttribute("role", "listitem");
    node.dataset.name = name;
    node.style.flexGrow = (100 * count) / total;
    range.textContent = count > 1 ? `${first}–${first + count - 1}` : first;
    node.append(name, range);
    return node;
  }));
}

// The image is one band; after it, a row and a column for each token of the text.
const BAND = 64;

function showMasks(masks) {
  part(".masks").replaceChildren(...masks.map((mask) => {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption");
    const row = document.createElement("i");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "The mask. Up and down choose the token that looks.");
    for (const kind of ["pointermove", "pointerdown"]) {
      canvas.addEventListener(kind, (event) => chooseToken(rowUnder(event, mask)));
    }
    canvas.addEventListener("keydown", (event) => stepToken(event, { ArrowUp: -1, ArrowDown: 1 }));
    caption.textContent = masks.length > 1 ? `layers ${mask.layers.join(", ")}` : "";
    figure.append(canvas, row, caption);
    return figure;
  }));
  drawMasks();
}

function drawMasks() {
  const masks = state.value.masks || [];
  [...part(".masks").children].forEach((figure, i) => drawMask(figure.firstChild, masks[i].rows));
  drawChosen();
}

function drawMask(canvas, rows) {
  const side = canvas.parentElement.clientWidth;
  if (!side) return;
  const cell = cellOf(side, rows.length);
  const width = BAND + cell * (rows.length - 1);
  canvas.style.width = canvas.style.height = `${width}px`;
  const pen = penOf(canvas, width, width);
  const colours = getComputedStyle(root);
  const kinds = ["image", ...state.value.tokens.map(([, , kind]) => kind)];
  rows.forEach((row, r) => kinds.forEach((kind, c) => {
    const [x, w] = spanOf(c, cell);
    const [y, h] = spanOf(r, cell);
    const gap = cell > 6 ? 1 : 0;
    pen.globalAlpha = 1;
    pen.fillStyle = colours.getPropertyValue("--soft");
    pen.fillRect(x, y, w - gap, h - gap);
    pen.globalAlpha = Number(row[c]) / 9;
    pen.fillStyle = colours.getPropertyValue(`--kind-${kind}`);
    pen.fillRect(x, y, w - gap, h - gap);
  }));
  pen.fillStyle = colours.getPropertyValue("--on-accent");
  pen.font = "600 11px sans-serif";
  pen.textAlign = "center";
  pen.fillText("image", BAND / 2, BAND / 2 - 3);
  pen.fillText(`× ${state.value.images}`, BAND / 2, BAND / 2 + 12);
  canvas.dataset.cell = cell;
}

function markRow(figure) {
  const [canvas, row] = figure.children;
  const [y, height] = spanOf(state.token, Number(canvas.dataset.cell));
  Object.assign(row.style, { top: `${y}px`, height: `${height}px`, width: canvas.style.width });
}

function cellOf(side, rows) {
  return Math.min(26, (Math.min(side, 460) - BAND) / Math.max(1, rows - 1));
}

// Where a row or a column starts and how long it is, in whole pixels.
function spanOf(index, cell) {
  if (!index) return [0, BAND];
  const [start, end] = [index - 1, index].map((count) => Math.round(BAND + count * cell));
  return [start, end - start];
}

function rowUnder(event, mask) {
  const bounds = event.currentTarget.getBoundingClientRect();
  const y = event.clientY - bounds.top - BAND;
  if (y < 0) return 0;
  return Math.min(mask.rows.length - 1, 1 + Math.floor(y / Number(event.currentTarget.dataset.cell)));
}

function seesTold({ layers, rows }, several) {
  const row = rows[state.token];
  const kinds = state.value.tokens.map(([, , kind]) => kind);
  const seen = (wanted) => kinds.filter((kind, i) => wanted(kind) && row[i + 1] === "9").length;
  const all = (wanted) => kinds.filter(wanted).length;
  const isAnswer = (kind) => kind === "answer";
  const isPrompt = (kind) => kind !== "answer";
  const image = { 0: "none of the image", 9: "the whole image" }[row[0]] || "a part of the image";
  const who = state.token ? `“${shownPiece(state.value.tokens[state.token - 1][1])}”` : "A patch";
  const where = several ? `In layers ${layers.join(", ")} ` : "";
  const answer = all(isAnswer) ? `, and at ${seen(isAnswer)} of ${all(isAnswer)} of the answer` : "";
  return `${where}${who} may look at ${image}, at ${seen(isPrompt)} of ${all(isPrompt)} prompt tokens${answer}.`;
}

function chooseToken(index) {
  if (!state.value?.tokens || index < 0 || index > state.value.tokens.length) return;
  state.token = index;
  drawChosen();
}

function stepToken(event, steps) {
  if (!steps[event.key]) return;
  event.preventDefault();
  chooseToken(state.token + steps[event.key]);
  if (event.currentTarget === strip) strip.children[state.token]?.scrollIntoView({ block: "nearest" });
}

strip.addEventListener("keydown", (event) => stepToken(event, { ArrowLeft: -1, ArrowRight: 1 }));
for (const kind of ["pointerover", "click"]) {
  strip.addEventListener(kind, (event) => {
    const node = event.target.closest(".chip");
    if (node) chooseToken(Number(node.dataset.index));
  });
}
