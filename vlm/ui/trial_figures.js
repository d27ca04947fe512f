// Figures of the tests: bars from a zero line, rows, and cells that arrows walk over.

// As many children as there are things, each filled in its turn; focus stays.
function fillRows(box, things, make, fill) {
  while (box.children.length > things.length) box.lastChild.remove();
  while (box.children.length < things.length) box.append(make(box.children.length));
  things.forEach((thing, i) => fill(box.children[i], thing, i));
}

function rowOf(...names) {
  const row = document.createElement("div");
  row.setAttribute("role", "listitem");
  row.append(...names.map((name) => {
    const [tag, kind] = name.split(".");
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    return node;
  }));
  return row;
}

// The least and the most of a scale that holds zero, all values, and some room.
function scaleOf(values, low, high) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return [Math.min(low, ...known), Math.max(high, ...known)];
}

// From zero to the value; `beside` is where something to compare with lies.
function setBar(bar, value, [low, high], beside = null) {
  const told = [value, low, high, beside].join();
  if (bar.dataset.told === told) return;
  bar.dataset.told = told;
  const at = (x) => (100 * (x - low)) / (high - low);
  const place = (name, x) => bar.style.setProperty(name, `${x.toFixed(2)}%`);
  place("--zero", at(0));
  place("--from", at(Math.min(0, value ?? 0)));
  place("--long", at(Math.max(0, value ?? 0)) - at(Math.min(0, value ?? 0)));
  place("--beside", at(beside ?? 0));
  bar.classList.add("bar-of");
  bar.classList.toggle("falls", value < 0);
  bar.classList.toggle("compared", beside !== null);
}

// With a sign, unless nothing but zeros is left.
function signed(value) {
  if (value === null || value === undefined) return "–";
  const digits = Math.abs(value).toFixed(2);
  return `${Number(digits) ? (value < 0 ? "−" : "+") : ""}${digits}`;
}

function layerName(layer) {
  return layer < 0 ? "embedding" : `layer ${layer}`;
}

// A grid of cells; words(row, column) tells what one means, for eye and ear.
function cellGrid(box, label) {
  const cursor = { row: 0, column: 0 };
  const cellAt = (row, column) => box.children[row]?.children[column];
  box.setAttribute("role", "grid");
  box.setAttribute("aria-label", label);
  box.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    cellAt(cursor.row + down, cursor.column + right)?.focus();
  });
  box.addEventListener("focusin", ({ target }) => {
    const row = [...box.children].indexOf(target.parentElement);
    cellAt(cursor.row, cursor.column)?.setAttribute("tabindex", -1);
    Object.assign(cursor, { row, column: [...target.parentElement.children].indexOf(target) });
    target.tabIndex = 0;
  });
  return (rows, columns, fill) => {
    const things = Array.from({ length: rows }, (_, i) => i);
    const makeRow = () => {
      const row = document.createElement("div");
      row.setAttribute("role", "row");
      return row;
    };
    const makeCell = () => {
      const cell = document.createElement("span");
      cell.setAttribute("role", "gridcell");
      cell.tabIndex = -1;
      return cell;
    };
    const cells = Array.from({ length: columns }, (_, i) => i);
    fillRows(box, things, makeRow, (line, _, row) =>
      fillRows(line, cells, makeCell, (cell, __, column) => fill(cell, row, column)));
    if (!cellAt(cursor.row, cursor.column)) Object.assign(cursor, { row: 0, column: 0 });
    const first = cellAt(cursor.row, cursor.column);
    if (first) first.tabIndex = 0;
  };
}
