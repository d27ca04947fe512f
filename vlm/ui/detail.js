// Detail: the chosen token in words and figures, and the list of objects.

const part = (name) => element.querySelector(name);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)}%`;
const spaced = (share) => percent(share).replace("%", " %");
const seconds = (time) => (time < 1 ? `${Math.round(time * 1000)} ms` : `${time.toFixed(2)} s`);
const EDGES = ["top", "left", "bottom", "right"];
const ALTERNATIVES = 5;

function buildDetail() {
  const rows = Array.from({ length: ALTERNATIVES }, () => {
    const row = document.createElement("div");
    row.setAttribute("role", "listitem");
    row.append(...["b", "i", "span"].map((name) => document.createElement(name)));
    return row;
  });
  part(".alternatives").replaceChildren(...rows);
}

function drawDetail() {
  const single = state.chosen.length === 1 ? state.chosen[0] : null;
  const token = single ? tokenAt(single) : null;
  const object = state.object < 0 ? null : state.value.objects[state.object];
  part(".token h2").textContent = titleOf(single);
  part(".role").textContent = single ? roleOf(single) : "";
  part(".piece").textContent = token ? visible(token.text) : object ? object.label || "…" : "–";
  const sure = token ? token.probability : object ? object.confidence : undefined;
  part(".probability").textContent = sure === undefined ? "" : spaced(sure);
  drawAlternatives(token, object);
  drawShares();
}

function titleOf(single) {
  if (single) {
    const at = Number(single.slice(1));
    if (single[0] === "p") return `Prompt token ${at} of ${state.value.prompt.length}`;
    return `Token ${at + 1} of ${state.value.tokens.length}`;
  }
  return state.chosen.length ? `Object, mean of ${state.chosen.length} tokens` : "Token";
}

function roleOf(key) {
  const owner = ownerOf(key);
  if (owner < 0) return "";
  const { label } = state.value.objects[owner];
  const edge = edgeOf(key, owner);
  const text = visible(tokenAt(key).text);
  if (edge >= 0) return `${EDGES[edge]} edge of “${label || "…"}”`;
  return /^<seg\d+>$/.test(text) ? `mask of “${label || "…"}”` : "names the object";
}

// The four <loc> tokens of an object are its top, left, bottom and right edge.
function edgeOf(key, owner) {
  if (binOf(tokenAt(key).text) === null) return -1;
  const locs = keysOf(owner).filter((k) => tokenAt(k) && binOf(tokenAt(k).text) !== null);
  return locs.indexOf(key);
}

function binOf(text) {
  const found = /^<loc(\d{4})>$/.exec(text.trim());
  return found ? Number(found[1]) : null;
}

// The chosen token as a line over the picture, if it is one.
function chosenEdge() {
  const key = state.chosen.length === 1 ? state.chosen[0] : null;
  const owner = key ? ownerOf(key) : -1;
  const edge = owner < 0 ? -1 : edgeOf(key, owner);
  if (edge < 0) return null;
  const token = tokenAt(key);
  const candidates = candidatesOf(key)
    .map(({ text, probability }) => ({ bin: binOf(text), probability }))
    .filter(({ bin }) => bin !== null);
  return { axis: edge % 2 ? "x" : "y", bin: binOf(token.text), object: owner, candidates };
}

// What else a token might have been; of an object, its own tokens, edges first.
function drawAlternatives(token, object) {
  const own = object ? object.tokens.map((index) => state.value.tokens[index]) : [];
  const rows = token ? candidatesOf(state.chosen[0]) : own;
  const name = object ? "Tokens of the object" : "What else it might have been";
  part(".alternatives").setAttribute("aria-label", name);
  [...part(".alternatives").children].forEach((row, i) => {
    const { text = "", probability = 0, id } = rows[i] || {};
    row.className = !rows[i] ? "empty" : token && id === token.id ? "said" : "";
    row.children[0].textContent = visible(text);
    row.children[1].style.setProperty("--part", percent(probability));
    row.children[2].textContent = rows[i] ? spaced(probability) : "";
  });
}

function drawShares() {
  const head = headShown();
  const where = `layer ${state.layer}, ${head === MEAN ? "mean of heads" : `head ${head}`}`;
  part(".where").textContent = `Where it looked, ${where}`;
  const heat = heatOf(state.chosen, state.layer, head);
  const shares = heat ? heat.shares : [0, 0, 0, 0];
  const bars = part(".shares").children;
  const names = part(".keys").querySelectorAll("b");
  shares.forEach((share, i) => {
    bars[i].style.width = percent(share);
    names[i].textContent = heat ? spaced(share) : "";
  });
  const words = ["image", "bos", "prompt", "answer"];
  part(".shares").setAttribute(
    "aria-label", heat ? shares.map((s, i) => `${words[i]} ${spaced(s)}`).join(", ") : "not known yet");
  part(".peak").textContent = heat ? spaced(peakOf(heat)) : "–";
  part(".seen").textContent = heat ? spaced(shares[0]) : "–";
}

// What a patch of the brightest colour has: of the image's attention, or of all.
function peakOf(heat) {
  if (state.raw) return heat.ceiling;
  return heat.mass ? heat.peak / heat.mass : 0;
}

function visible(text) {
  return text.replaceAll("\n", "⏎").replace(/^ +/, (run) => "·".repeat(run.length));
}

function drawMeta() {
  const { tokens, timing, done, cut } = state.value;
  part(".count").textContent = tokens.length;
  part(".first").textContent = timing ? seconds(timing.first) : "–";
  part(".rate").textContent = timing?.rate ? timing.rate.toFixed(timing.rate < 10 ? 1 : 0) : "–";
  const empty = done && !tokens.length ? "the answer is empty" : "";
  const end = done && cut ? "cut at the maximum of tokens" : empty;
  part(".state").textContent = state.stopped ? "stopped" : end;
}
