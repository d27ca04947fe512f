// Tokens: a chip for each, coloured by its probability; choosing some shows their heat.

const list = element.querySelector(".tokens");
const caret = document.createElement("span");
caret.className = "caret";
const GLANCE_MS = 120; // a pointer that only passes by fetches nothing

function resetTokens(prompt) {
  list.replaceChildren(...prompt.map((token, i) => chip(`p${i + 1}`, token)), caret);
  list.dataset.count = 0;
}

function appendTokens(tokens) {
  const have = Number(list.dataset.count);
  if (tokens.length === have) return;
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 4;
  caret.before(...tokens.slice(have).map((token, i) => chip(`a${have + i}`, token)));
  list.dataset.count = tokens.length;
  // The list runs with the answer, unless the reader is at something in it.
  if (atEnd && state.follow && !state.glance) list.scrollTop = list.scrollHeight;
}

function drawTokens() {
  const chosen = new Set(state.chosen);
  const owner = state.chosen.length ? ownerOf(state.chosen[0]) : -1;
  const kin = new Set(owner < 0 ? [] : keysOf(owner));
  const looks = patchLooks();
  for (const node of list.children) {
    const { key } = node.dataset;
    if (!key) continue;
    const selected = String(chosen.has(key));
    if (node.ariaSelected !== selected) node.ariaSelected = selected;
    if (isGiven(key) !== node.classList.contains("given")) nameChip(node, key);
    node.classList.toggle("active", key === state.cursor);
    node.classList.toggle("glance", key === state.glance);
    node.classList.toggle("kin", kin.has(key) && !looks);
    node.classList.toggle("looked", Boolean(looks));
    if (kin.has(key)) node.style.setProperty("--kin", hueOf(owner));
    if (looks) node.style.setProperty("--look", percent(looks.get(key) || 0));
  }
  if (state.cursor) list.setAttribute("aria-activedescendant", chipId(state.cursor));
  else list.removeAttribute("aria-activedescendant");
}

function chip(key, token) {
  const node = document.createElement("span");
  node.className = "chip";
  node.id = chipId(key);
  node.dataset.key = key;
  node.setAttribute("role", "option");
  node.append(...shownText(token.text));
  if ("probability" in token) markProbability(node, token.probability);
  nameChip(node, key, token);
  return node;
}

function chipId(key) {
  return `${element.id || "scope"}-${key}`;
}

// A space in front is part of the token, so it is shown, faintly.
function shownText(text) {
  const shown = text.replaceAll("\n", "⏎");
  const spaces = shown.length - shown.trimStart().length;
  const lead = document.createElement("s");
  lead.textContent = "·".repeat(spaces);
  return spaces ? [lead, shown.slice(spaces)] : [shown];
}

function markProbability(node, probability) {
  const bar = document.createElement("i");
  const level = probability > 0.8 ? "sure" : probability > 0.5 ? "fair" : "doubt";
  bar.style.setProperty("--part", percent(probability));
  node.classList.add("said", level);
  node.dataset.percent = percent(probability);
  node.append(bar);
}

function nameChip(node, key, token = tokenAt(key)) {
  const given = isGiven(key);
  const share = node.dataset.percent;
  const label = share ? `${given ? "given, " : ""}probability ${share}` : "of the prompt";
  node.classList.toggle("given", given);
  node.title = label;
  node.setAttribute("aria-label", `${token.text.trim() || "space"}, ${label}`);
}

// The forced start of an answer: given to the model, not said by it.
function isGiven(key) {
  return key[0] === "a" && Number(key.slice(1)) < state.value.forced;
}

// How much each token looked at the patch under the pointer, against the keenest.
function patchLooks() {
  if (state.patch === null) return null;
  const found = new Map();
  for (const key of allKeys()) {
    const look = lookAt(key, layerShown(), headShown(), state.patch);
    if (look !== null) found.set(key, look);
  }
  const most = Math.max(1e-9, ...found.values());
  for (const [key, look] of found) found.set(key, look / most);
  return found;
}

function allKeys() {
  return [
    ...state.value.prompt.map((_, i) => `p${i + 1}`),
    ...state.value.tokens.map((_, i) => `a${i}`),
  ];
}

function tokenAt(key) {
  const at = Number(key.slice(1));
  return key[0] === "p" ? state.value.prompt[at - 1] : state.value.tokens[at];
}

function keysOf(object) {
  return state.value.objects[object].tokens.map((index) => `a${index}`);
}

function ownerOf(key) {
  const at = key[0] === "a" ? Number(key.slice(1)) : -1;
  return state.value.objects.findIndex((object) => object.tokens.includes(at));
}

// All tokens from one to another, whichever comes first.
function chooseSpan(to, from = state.anchor ?? to) {
  const keys = allKeys();
  const [first, last] = [keys.indexOf(from), keys.indexOf(to)].sort((a, b) => a - b);
  choose(keys.slice(first, last + 1), -1, to);
  state.anchor = from;
}

function toggleToken(key) {
  const chosen = new Set(state.chosen);
  if (!chosen.delete(key)) chosen.add(key);
  choose(allKeys().filter((each) => chosen.has(each)), -1, key);
}

// The detail card shows this token for now; the heat stays as it is.
let glancing = 0;
function glanceAt(key) {
  if (key === state.glance) return;
  state.glance = key;
  clearTimeout(glancing);
  const fetch = () => fetchMaps([key]).then(redraw);
  if (key && !maps.kept.has(key)) glancing = setTimeout(fetch, GLANCE_MS);
  redraw();
}

function moveCursor(to, event) {
  const keys = allKeys();
  if (!keys.length) return;
  const key = keys[Math.max(0, Math.min(keys.length - 1, to))];
  if (event.shiftKey) chooseSpan(key);
  else if (event.ctrlKey || event.metaKey) {
    state.cursor = key;
    glanceAt(key);
  } else choose([key]);
  list.querySelector(`[data-key=${key}]`).scrollIntoView({ block: "nearest" });
}

function chipUnder(event) {
  return event.target.closest(".chip")?.dataset.key ?? null;
}

list.addEventListener("click", (event) => {
  const key = chipUnder(event);
  if (!key) return;
  if (event.shiftKey) chooseSpan(key);
  else if (event.ctrlKey || event.metaKey) toggleToken(key);
  else choose([key]);
});

// A mouse drags over a span of tokens; a finger drags to scroll.
let dragFrom = null;
list.addEventListener("pointerdown", (event) => {
  const drags = event.pointerType !== "touch" && event.button === 0;
  dragFrom = drags ? chipUnder(event) : null;
});
list.addEventListener("pointerover", (event) => {
  const key = chipUnder(event);
  if (!key || event.pointerType === "touch") return;
  if (dragFrom && event.buttons & 1) chooseSpan(key, dragFrom);
  else glanceAt(key);
});
list.addEventListener("pointerleave", () => glanceAt(null));
list.addEventListener("focusout", () => glanceAt(null));

list.addEventListener("keydown", (event) => {
  const { key, ctrlKey, metaKey, altKey } = event;
  const keys = allKeys();
  const at = keys.indexOf(state.cursor);
  const places = {
    ArrowRight: at + 1,
    ArrowLeft: at < 0 ? keys.length : at - 1,
    Home: 0,
    End: keys.length,
  };
  const moves = {
    " ": () => state.cursor && toggleToken(state.cursor),
    Enter: () => state.cursor && choose([state.cursor]),
    ArrowUp: () => moveLayer(state.layer + 1),
    ArrowDown: () => moveLayer(state.layer - 1),
    m: () => moveHead(MEAN, false),
  };
  if (altKey) return;
  if (key in places) moveCursor(places[key], event);
  else if (key in moves && !ctrlKey && !metaKey) moves[key]();
  else if (/^\d$/.test(key) && !ctrlKey && !metaKey) moveHead(Number(key), false);
  else return;
  event.preventDefault();
});

element.querySelector(".numbers").addEventListener("click", (event) => {
  const on = list.classList.toggle("numbered");
  event.currentTarget.setAttribute("aria-pressed", on);
});
