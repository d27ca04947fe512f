// Cut: what becomes of the token when patches are not seen, or a head gives nothing.

const cut = { rows: "answer", pointed: null };
const cutHeads = part(".trial .headless");
const drawCells = cellGrid(cutHeads, "Change by each head that is silenced: layers down, heads across");
const CUTS = { box: "the box", others: "all but the box", hottest: "the hottest tenth" };

const CUT = {
  mapped: true,
  ready: () => Boolean(mapKept()),
  key: () => `${cut.rows} ${boxTried()}`,
  told: () => ({ heat: mapRows(), box: boxTried(), rows: cut.rows }),

  draw(panel, found, over) {
    write(panel.querySelector(".told-of"), `Map: ${over ?? mapName()}`);
    const names = boxTried() ? Object.keys(CUTS) : ["hottest"];
    const cuts = found?.cuts ?? names.map((name) => ({ name, count: 0, change: null, random: null }));
    const scale = scaleOf(cuts.flatMap(({ change, random }) => [change, random]), -0.1, 0.1);
    fillRows(panel.querySelector(".cuts"), cuts, () => rowOf("b", "span", "i", "small"), (row, each) => fillCut(row, each, scale, found));
    write(panel.querySelector(".no-box"), boxTried() ? "" : "This token belongs to no box: only the map's patches are cut.");
    drawHeadless(found);
  },

  words({ cuts }) {
    return cuts.map(({ name, count, change, random }) => `${CUTS[name]}, ${patchCount(count)}: ${signed(change)}, as many random ${signed(random)}`).join("; ");
  },
};

function patchCount(count) {
  return count ? `${count} ${count === 1 ? "patch" : "patches"}` : "– patches";
}

// In shares of the sides: the chosen object's box, or that of a drawn region.
function boxTried() {
  const box = boxChosen();
  const { width, height, question } = state.value;
  if (!box) return regionIn(question);
  const inside = (share) => Math.max(0, Math.min(1, share));
  const [x1, y1, x2, y2] = box.map((edge, i) => inside(edge / (i % 2 ? height : width)));
  return x1 < x2 && y1 < y2 ? [x1, y1, x2, y2] : null;
}

function fillCut(row, { name, count, change, random }, scale, found) {
  const [title, values, bar, beside] = row.children;
  write(title, CUTS[name]);
  write(values, change === null ? "–" : fallWords(found.probability, change));
  setBar(bar, change, scale, random);
  write(beside, `${patchCount(count)}; as many random: ${signed(random)}`);
}

// From which probability to which, and their quotient's natural logarithm.
function fallWords(before, change) {
  return `${spaced(before)} → ${spaced(Math.min(1, before * Math.exp(change)))} (${signed(change)})`;
}

function drawHeadless(found) {
  const most = Math.max(0.01, ...(found?.heads.flat() ?? []).map((change) => Math.abs(change ?? 0)));
  drawCells(shape.layers, shape.heads, (cell, layer, head) => {
    const change = found?.heads[layer][head] ?? null;
    cell.classList.toggle("falls", change < 0);
    cell.style.setProperty("--part", percent(Math.abs(change ?? 0) / most));
    mark(cell, "aria-label", headlessWords(found, layer, head));
    mark(cell, "title", headlessWords(found, layer, head));
  });
  const { pointed } = cut;
  const on = pointed && pointed.layer < shape.layers && pointed.head < shape.heads;
  write(part(".trial .reading-of"), on ? headlessWords(found, pointed.layer, pointed.head) : "Each head silenced by itself: layers down, heads across.");
  write(part(".trial .least"), `−${most.toFixed(2)}`);
  write(part(".trial .most"), `+${most.toFixed(2)}`);
}

function headlessWords(found, layer, head) {
  const change = found?.heads[layer][head] ?? null;
  const words = change === null ? "not known yet" : fallWords(found.probability, change);
  return `layer ${layer}, head ${head}: ${words}`;
}

function pointHeadless(cell) {
  const row = cell?.parentElement;
  cut.pointed = cell && { layer: [...cutHeads.children].indexOf(row), head: [...row.children].indexOf(cell) };
  redraw();
}

for (const kind of ["pointerover", "focusin"]) {
  cutHeads.addEventListener(kind, (event) => pointHeadless(event.target.closest("[role=gridcell]")));
}
for (const kind of ["pointerleave", "focusout"]) cutHeads.addEventListener(kind, () => pointHeadless(null));
part(".trial .rows").addEventListener("click", (event) => {
  const { rows } = event.target.closest("button")?.dataset ?? {};
  if (!rows) return;
  cut.rows = rows;
  for (const each of event.currentTarget.children) mark(each, "aria-pressed", each.dataset.rows === rows);
  redraw();
});
