// Matrix: pictures x texts, read with a sigmoid and with a softmax.

const root = part(".matrix");
const tables = [...root.querySelectorAll("table")];
const state = { pictures: [], texts: [], logits: null, looks: [], scale: 1, bias: 0, looker: "the pooling head", off: new Set(), cell: null };
const SHORT = 40; // characters of a text that is named in passing
const PHASES = {
  idle: "",
  running: "Matching…",
  failed: "There are no figures: what was wrong has been said.",
};
// A row of logits to its row of probabilities; null where a text takes no part.
const WAYS = {
  sigmoid: (logits) => logits.map((logit) => 1 / (1 + Math.exp(-logit))),
  softmax(logits, off) {
    const most = Math.max(...logits.filter((_, column) => !off.has(column)));
    const parts = logits.map((logit, column) => (off.has(column) ? null : Math.exp(logit - most)));
    const sum = parts.reduce((sum, share) => sum + share, 0);
    return parts.map((share) => (share === null ? null : share / sum));
  },
};

function update() {
  const value = JSON.parse(JSON.stringify(props.value ?? { phase: "idle", pictures: [], texts: [] }));
  const shape = ({ pictures, texts }) => JSON.stringify([pictures.map(({ path }) => path), texts]);
  const same = shape(value) === shape(state);
  Object.assign(state, { logits: null, looks: [] }, value);
  if (!same) {
    state.off.clear();
    state.cell = null;
    root.style.setProperty("--texts", state.texts.length);
    tables.forEach(build);
    write(part(".told"), "");
  }
  for (const means of root.querySelectorAll(".way[data-way=sigmoid] .means")) {
    means.hidden = means.matches(".unbiased") !== (state.bias === null);
  }
  told(value.phase);
  fill();
  if (state.logits) choose(state.cell ?? { row: 0, column: bestOf(state.logits[0]) });
  else showCell();
}

function told(phase) {
  root.dataset.phase = phase;
  const { pictures: { length: i }, texts: { length: t } } = state;
  const done = `${i} ${i === 1 ? "picture" : "pictures"}, ${t} ${t === 1 ? "text" : "texts"}.`;
  write(part(".state"), PHASES[phase] ?? done);
}

function build(table) {
  const head = row(made("th", "columnheader", "Picture"), ...state.texts.map(headOf));
  const rows = state.pictures.map((file, index) =>
    row(pictureOf(file, index), ...state.texts.map((_, column) => cellOf(index, column))));
  table.replaceChildren(head, ...rows);
  const first = table.querySelector("td, th button");
  if (first) first.tabIndex = 0;
}

function row(...cells) {
  const line = made("tr", "row");
  line.append(...cells);
  return line;
}

function headOf(text, column) {
  const head = made("th", "columnheader");
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: text, title: text, tabIndex: -1 });
  Object.assign(button.dataset, { row: -1, column });
  mark(button, "aria-pressed", true);
  head.append(button);
  return head;
}

function pictureOf(file, index) {
  const head = made("th", "rowheader");
  const image = document.createElement("img");
  Object.assign(image, { src: file.url, alt: `Picture ${index + 1}` });
  head.append(image);
  return head;
}

function cellOf(row, column) {
  const cell = made("td", "gridcell");
  cell.tabIndex = -1;
  mark(cell, "aria-selected", false);
  Object.assign(cell.dataset, { row, column });
  return cell;
}

// All figures, and which texts are off.
function fill() {
  for (const table of tables) {
    const rows = state.logits?.map((logits) => WAYS[table.dataset.way](logits, state.off));
    for (const cell of table.querySelectorAll("td")) {
      const { row, column } = cell.dataset;
      paint(cell, rows?.[row][column]);
      // Only here is the greatest a winner: it is one whatever the others are.
      const wins = table.dataset.way === "softmax" && rows && bestOf(rows[row]) === Number(column);
      cell.classList.toggle("best", Boolean(wins));
    }
    for (const button of table.querySelectorAll("button")) {
      mark(button, "aria-pressed", !state.off.has(Number(button.dataset.column)));
    }
  }
}

function paint(cell, share) {
  const known = typeof share === "number";
  write(cell, known ? percent(share) : share === null ? "off" : "");
  cell.dataset.value = known ? share : "";
  const colour = known ? rampAt(share) : null;
  cell.style.background = colour ? `rgb(${colour})` : "";
  cell.style.color = colour ? (light(colour) > 0.179 ? "#000" : "#fff") : "";
}

function choose(cell) {
  state.cell = cell;
  for (const old of root.querySelectorAll("td[aria-selected=true]")) mark(old, "aria-selected", false);
  for (const table of tables) {
    const chosen = nodeAt(table, cell.row, cell.column);
    mark(chosen, "aria-selected", true);
    rove(table, chosen);
  }
  showCell();
}

function toggle(column) {
  if (!state.off.delete(column)) state.off.add(column);
  fill();
  showCell();
  const off = state.off.has(column);
  const left = state.texts.length - state.off.size;
  const rest = left ? `the softmax is now among ${left} of ${state.texts.length} texts` : "no text is left";
  const text = state.texts[column];
  const name = text.length > SHORT ? `${text.slice(0, SHORT)}…` : text;
  write(part(".told"), `“${name}” is ${off ? "off" : "on"}: ${rest}; no sigmoid has changed.`);
}

// One node of a table is reached with Tab, the others with arrow keys from there.
function rove(table, node) {
  for (const old of table.querySelectorAll("[tabindex='0']")) old.tabIndex = -1;
  node.tabIndex = 0;
}

function nodeAt(table, row, column) {
  return table.querySelector(`[data-row="${row}"][data-column="${column}"]`);
}

function step(table, node, rows, columns) {
  const next = nodeAt(table, Number(node.dataset.row) + rows, Number(node.dataset.column) + columns);
  if (!next) return;
  rove(table, next);
  next.focus();
  if (next.matches("td") && state.logits) choose(placeOf(next));
}

const placeOf = ({ dataset }) => ({ row: Number(dataset.row), column: Number(dataset.column) });

for (const table of tables) {
  table.addEventListener("click", ({ target }) => {
    const node = target.closest("td, button");
    if (node?.matches("button")) toggle(Number(node.dataset.column));
    else if (node && state.logits) choose(placeOf(node));
  });
  table.addEventListener("keydown", (event) => {
    const node = event.target.closest("td, button");
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!node || !moves[event.key]) return;
    event.preventDefault();
    step(table, node, ...moves[event.key]);
  });
}
part(".switch").addEventListener("click", ({ target }) => {
  const way = target.closest("button")?.dataset.way;
  if (!way) return;
  root.dataset.way = way;
  for (const button of part(".switch").children) mark(button, "aria-pressed", button.dataset.way === way);
});

function made(tag, role, text = "") {
  const node = document.createElement(tag);
  node.setAttribute("role", role);
  node.textContent = text;
  return node;
}

function bestOf(shares) {
  return shares.indexOf(Math.max(...shares));
}

function percent(share) {
  if (share > 0.9995) return share === 1 ? "100" : ">99.9";
  return share < 0.001 ? (share ? "<0.1" : "0") : (100 * share).toFixed(share < 0.0995 || share > 0.99 ? 1 : 0);
}

// The relative luminance of a colour (WCAG 2.2): black reads better than white above 0.179.
function light(colour) {
  const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
