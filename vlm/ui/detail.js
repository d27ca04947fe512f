// Detail: the chosen tokens, or the one pointed at, in words and figures.

const ALTERNATIVES = 5;

function drawDetail() {
  const keys = state.glance ? [state.glance] : state.chosen;
  const single = keys.length === 1 ? keys[0] : null;
  const object = state.glance || state.object < 0 ? null : state.value.objects[state.object];
  const aside = state.glance && state.chosen.join() !== state.glance;
  write(part(".token h2"), aside ? `Pointed at: ${titleOf(keys).toLowerCase()}` : titleOf(keys));
  part(".token").classList.toggle("glance", Boolean(aside));
  write(part(".role"), single ? roleOf(single) : "");
  write(part(".piece"), object ? object.label || "…" : keys.map(pieceOf).join("") || "–");
  const sure = object ? object.confidence : meanProbability(keys);
  write(part(".probability"), sure === null ? "" : spaced(sure));
  write(part(".place"), single ? placeOf(single) : "");
  drawAlternatives(keys, single);
  drawShares(keys);
}

function titleOf(keys) {
  if (keys.length > 1) {
    return `${state.object < 0 ? "Mean" : "Object, mean"} of ${keys.length} tokens`;
  }
  if (!keys.length) return "Token";
  const at = Number(keys[0].slice(1));
  if (keys[0][0] === "p") return `Prompt token ${at} of ${state.value.prompt.length}`;
  return `Token ${at + 1} of ${state.value.tokens.length}`;
}

function roleOf(key) {
  const given = isGiven(key) ? ["given, not said"] : [];
  const owner = ownerOf(key);
  if (owner < 0) return given.join();
  const label = `“${state.value.objects[owner].label || "…"}”`;
  const side = sideOf(key, owner);
  const mask = /^<seg\d+>$/.test(tokenAt(key).text.trim());
  const role = mask ? `mask of ${label}` : "names the object";
  return [...given, side < 0 ? role : `${SIDES[side]} edge of ${label}`].join(", ");
}

function pieceOf(key) {
  return visible(tokenAt(key).text);
}

// The geometric mean; null where nothing was said.
function meanProbability(keys) {
  const said = keys.map((key) => tokenAt(key).probability).filter((p) => p !== undefined);
  if (!said.length) return null;
  return Math.exp(said.reduce((sum, p) => sum + Math.log(Math.max(p, 1e-9)), 0) / said.length);
}

// Where the edge of a <loc> token is, and where it was expected, in pixels.
function placeOf(key) {
  const edge = edgeOf(key);
  if (!edge?.bins) return "";
  const [first] = state.value.pictures; // boxes lie there
  const size = edge.axis === "x" ? first.width : first.height;
  const pixels = (bin) => ((bin / BINS) * size).toFixed(bin && (bin / BINS) * size < 1 ? 1 : 0);
  const { mean, deviation } = spreadOf(edge.bins);
  return `${edge.axis} = ${pixels(edge.bin)} px ± ${pixels(deviation)} px (expected ${pixels(mean)})`;
}

// What else a token might have been; of several tokens, these tokens.
function drawAlternatives(keys, single) {
  const box = part(".alternatives");
  const rows = single ? alternativesOf(single) : keys.map(tokenAt);
  const count = Math.max(ALTERNATIVES, rows.length);
  while (box.children.length > count) box.lastChild.remove();
  while (box.children.length < count) box.append(alternativeRow());
  [...box.children].forEach((row, i) => fillAlternative(row, rows[i], single));
  mark(box, "aria-label", single ? "What else it might have been" : "The chosen tokens");
  // What scrolls has to be reached by the keyboard.
  if (rows.length > ALTERNATIVES) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
}

// The most probable, and always the one that was said.
function alternativesOf(key) {
  const token = tokenAt(key);
  const rows = candidatesOf(key).slice(0, ALTERNATIVES);
  const said = rows.some(({ id }) => id === token.id);
  return said || !rows.length ? rows : [...rows.slice(0, -1), token];
}

function alternativeRow() {
  const row = document.createElement("div");
  row.setAttribute("role", "listitem");
  row.append(...["b", "i", "span", "button"].map((name) => document.createElement(name)));
  row.lastChild.type = "button";
  row.lastChild.className = "branch";
  row.lastChild.title = "Continue from here";
  return row;
}

function fillAlternative(row, token, single) {
  const { text = "", probability, id } = token || {};
  const [piece, bar, share, branch] = row.children;
  const said = single && token && id === tokenAt(single).id;
  row.className = !token ? "empty" : said ? "said" : "";
  row.classList.toggle("unsaid", probability === undefined);
  write(piece, visible(text));
  bar.style.setProperty("--part", percent(probability || 0));
  write(share, probability === undefined ? "" : spaced(probability));
  branch.hidden = !token || !single || said || text === "<eos>";
  branch.disabled = root.dataset.phase === "running";
  branch.dataset.id = id;
  mark(branch, "aria-label", `Continue with "${text.trim() || visible(text)}" instead`);
}

part(".alternatives").addEventListener("click", (event) => {
  const button = event.target.closest(".branch");
  if (!button) return;
  const before = state.value.tokens.slice(0, Number(state.chosen[0].slice(1)));
  const ids = [...before.map(({ id }) => id), Number(button.dataset.id)];
  trigger("branch", { run: state.value.run, ids });
  part(".tokens").focus({ preventScroll: true }); // the button is about to go
});

function drawShares(keys) {
  const head = headShown() === MAX ? MEAN : headShown(); // shares have no maximum
  const where = `layer ${layerShown()}, ${headName(layerShown(), head)}`;
  write(part(".where"), `Where it looked, ${where}`);
  const shares = heatOf(keys, layerShown(), head)?.shares;
  const bars = part(".shares").children;
  const names = part(".keys").querySelectorAll("b");
  for (let i = 0; i < bars.length; i++) {
    bars[i].style.width = percent(shares ? shares[i] : 0);
    write(names[i], shares ? spaced(shares[i]) : "");
  }
  const words = ["image", "bos", "prompt", "answer"];
  const told = shares?.map((share, i) => `${words[i]} ${spaced(share)}`).join(", ");
  mark(part(".shares"), "aria-label", told || "not known yet");
}

function visible(text) {
  return text.replaceAll("\n", "⏎").replace(/^ +/, (run) => "·".repeat(run.length));
}

function spaced(share) {
  const tiny = share > 0 && share < 0.0005;
  return tiny ? "< 0.1 %" : percent(share).replace("%", " %");
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)}%`;
}
