// Difference: what two answers do not share, in words, boxes, probabilities and looks.

const root = element.querySelector(".difference");
const part = (name) => root.querySelector(name);
const LOOK = "paliscope:look";
const MEAN = -1; // of the heads, as in the viewers
const WAITS = {
  idle: "Both answers are set against each other here.",
  running: "It comes when both have answered.",
  stopped: "Stopped before both had answered.",
};

function update() {
  const value = props.value ? JSON.parse(JSON.stringify(props.value)) : { phase: "idle" };
  const done = value.phase === "done";
  root.dataset.phase = value.phase;
  part(".wait").hidden = done;
  part(".wait").textContent = WAITS[value.phase] || "";
  part(".told").hidden = !done;
  if (!done) return;
  part(".sentences").replaceChildren(...value.sentences.map((text) => made("li", "", text)));
  part(".words").replaceChildren(...wordsOf(value.words));
  drawBoxes(value.boxes);
  part(".scored").replaceChildren(...["a", "b"].map((side) => scoredOf(side, value.likelihood[side])));
  part(".retold").hidden = !value.retokenised;
  drawLooks(value.attention);
}

function wordsOf(words) {
  if (!words.length) return [made("span", "none", "Both answers are empty.")];
  return words.map(({ text, side }) => {
    if (side === "both") return document.createTextNode(text);
    return made(side === "a" ? "del" : "ins", "", text);
  });
}

function drawBoxes({ pairs, a, b }) {
  const rows = pairs.map(({ label, a, b, iou }) =>
    boxRow(label, `A ${a + 1}, B ${b + 1}`, iou.toFixed(2), bar(iou)));
  const alone = (side, name) => side.map(({ label, number }) =>
    boxRow(label, `${name} ${number + 1}`, `only ${name}`));
  const all = [...rows, ...alone(a, "A"), ...alone(b, "B")];
  part(".pairs").replaceChildren(...all);
  part(".said .none").hidden = all.length > 0;
}

function boxRow(label, numbers, told, bar = "") {
  const row = made("li", "");
  row.append(made("b", "", label || "…"), made("code", "", numbers), bar, made("span", "", told));
  return row;
}

// One answer, and what each side gives to it.
function scoredOf(side, { tokens, total, mean }) {
  const name = side.toUpperCase();
  const box = made("div", "answer");
  const sums = ["a", "b"].filter((judge) => total[judge] !== null).map((judge) =>
    made("span", judge, `${judge.toUpperCase()} ${signed(total[judge])} (${signed(mean[judge])} a token)`));
  const head = made("p", "");
  head.append(made("b", "", `${name}’s answer`), ...sums);
  box.append(head);
  if (!sums.length) box.append(made("p", "none", "It is empty."));
  else box.append(...stripsOf(tokens).map((strip) => stripOf(`${name}’s answer`, strip)));
  return box;
}

// One strip for both, or one for each where they cut the answer into other tokens.
function stripsOf({ a, b }) {
  const same = a.length === b.length && a.every(({ text }, i) => text === b[i].text);
  const alone = (side, name) => side.map(({ text, probability }) => ({ text, [name]: probability }));
  if (!same) return [alone(a, "a"), alone(b, "b")];
  return [a.map(({ text, probability }, i) => ({ text, a: probability, b: b[i].probability }))];
}

function stripOf(name, tokens) {
  const strip = made("ul", "strip");
  strip.tabIndex = 0;
  strip.setAttribute("aria-label", `Tokens of ${name}, with their probabilities`);
  strip.append(...tokens.map((token) => {
    const chip = made("li", "");
    chip.append(made("span", "piece", token.text.replaceAll("\n", "⏎")));
    for (const judge of ["a", "b"].filter((judge) => judge in token)) {
      const row = made("span", judge);
      row.append(made("em", "", judge.toUpperCase()), bar(token[judge]), made("span", "", percent(token[judge])));
      chip.append(row);
    }
    return chip;
  }));
  return strip;
}

const grid = part("table");
const looks = { bits: [], tokens: [] };

function drawLooks({ bits, tokens, why }) {
  Object.assign(looks, { bits, tokens });
  grid.replaceChildren();
  part(".why").hidden = !why;
  part(".why").textContent = why;
  for (const name of [".readout", ".scroll", ".looks .note", ".looks .key"]) part(name).hidden = Boolean(why);
  if (why) return;
  const head = gridRow("layer");
  head.append(...tokens.map((pieces, i) => {
    const cell = made("th", "");
    cell.setAttribute("role", "columnheader");
    cell.title = `Token ${i + 1}`;
    cell.append(made("span", "a", pieces[0]), made("span", "b", pieces[1]));
    return cell;
  }));
  grid.append(head, ...bits.map((row, layer) => {
    const line = gridRow(layer);
    line.append(...row.map((value, token) => lookCell(layer, token, value)));
    return line;
  }));
  grid.querySelector("td").tabIndex = 0;
  part(".readout").textContent = "Point at a cell, or move over the table with the arrow keys.";
}

function gridRow(name) {
  const row = made("tr", "");
  const head = made("th", "", String(name));
  row.setAttribute("role", "row");
  head.setAttribute("role", name === "layer" ? "columnheader" : "rowheader");
  row.append(head);
  return row;
}

function lookCell(layer, token, value) {
  const cell = made("td", "");
  cell.tabIndex = -1;
  cell.setAttribute("role", "gridcell");
  cell.setAttribute("aria-label", toldOf(layer, token));
  cell.setAttribute("aria-selected", "false");
  Object.assign(cell.dataset, { layer, token });
  if (value === null) cell.className = "unseen";
  else cell.style.setProperty("--part", `${100 * value}%`);
  return cell;
}

function toldOf(layer, token) {
  const [a, b] = looks.tokens[token].map((piece) => `“${piece.trim()}”`);
  const bits = looks.bits[layer][token];
  const told = bits === null ? "Hardly any of it on the image" : `${bits.toFixed(3)} bits`;
  return `${told}: layer ${layer}, token ${token + 1}, ${a} of A, ${b} of B`;
}

function cellAt(layer, token) {
  return grid.querySelector(`td[data-layer="${layer}"][data-token="${token}"]`);
}

function read(cell) {
  if (cell) part(".readout").textContent = cell.getAttribute("aria-label");
}

function mark(cell) {
  for (const old of grid.querySelectorAll("[aria-selected=true]")) old.setAttribute("aria-selected", "false");
  cell?.setAttribute("aria-selected", "true");
}

function show(cell) {
  const { layer, token } = cell.dataset;
  const look = { layer: Number(layer), head: MEAN, keys: [`a${token}`] };
  mark(cell);
  document.dispatchEvent(new CustomEvent(LOOK, { detail: { group: props.group, from: element, ...look } }));
}

function step(cell, rows, columns) {
  const { layer, token } = cell.dataset;
  const next = cellAt(Number(layer) + rows, Number(token) + columns);
  if (!next) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

grid.addEventListener("pointerover", (event) => read(event.target.closest("td")));
grid.addEventListener("focusin", (event) => read(event.target.closest("td")));
grid.addEventListener("click", (event) => {
  const cell = event.target.closest("td");
  if (cell) show(cell);
});
grid.addEventListener("keydown", (event) => {
  const cell = event.target.closest("td");
  const moves = {
    ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  };
  const chosen = event.key === "Enter" || event.key === " ";
  if (!cell || (!chosen && !moves[event.key])) return;
  event.preventDefault();
  if (chosen) show(cell);
  else step(cell, ...moves[event.key]);
});
document.addEventListener(LOOK, ({ detail: { group, from, layer, keys } }) => {
  if (group !== props.group || from === element) return;
  const one = keys?.length === 1 && keys[0][0] === "a" ? Number(keys[0].slice(1)) : -1;
  mark(cellAt(layer, one));
});

function made(tag, name, text = "") {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.textContent = text;
  return node;
}

function bar(share) {
  const node = made("i", "");
  node.style.setProperty("--part", `${100 * share}%`);
  return node;
}

function signed(number) {
  return number.toFixed(2).replace("-", "−");
}

function percent(share) {
  return share && share < 0.001 ? "<0.1" : (100 * share).toFixed(share < 0.0995 ? 1 : 0);
}

watch("value", update);
update();
root.dataset.mounted = "true";
