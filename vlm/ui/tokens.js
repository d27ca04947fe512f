// Tokens: a chip for each, coloured by its probability; choosing one shows its heat.

const list = element.querySelector(".tokens");
const cursor = document.createElement("span");
cursor.className = "cursor";

function resetTokens(prompt) {
  list.replaceChildren(...prompt.map((token, i) => chip(`p${i + 1}`, token)), cursor);
  list.dataset.count = 0;
}

function appendTokens(tokens) {
  const have = Number(list.dataset.count);
  if (tokens.length === have) return;
  const fresh = tokens.slice(have).map((token, i) => chip(`a${have + i}`, token));
  cursor.before(...fresh);
  list.dataset.count = tokens.length;
  if (following) list.scrollTop = 1e6;
}

// Scrolling up to read stops the list from running to its end.
let following = true;
list.addEventListener("scroll", () => {
  following = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
});

function chip(key, token) {
  const node = document.createElement("span");
  node.className = "chip";
  node.id = `${element.id || "scope"}-${key}`;
  node.dataset.key = key;
  node.setAttribute("role", "option");
  node.append(...shownText(token.text));
  const label = "probability" in token ? markProbability(node, token) : "of the prompt";
  node.title = label;
  node.setAttribute("aria-label", `${token.text.trim() || "space"}, ${label}`);
  return node;
}

// A space in front is part of the token, so it is shown, faintly.
function shownText(text) {
  const shown = text.replaceAll("\n", "⏎");
  const spaces = shown.length - shown.trimStart().length;
  const lead = document.createElement("s");
  lead.textContent = "·".repeat(spaces);
  return spaces ? [lead, shown.slice(spaces)] : [shown];
}

function markProbability(node, token) {
  const bar = document.createElement("i");
  const level = token.probability > 0.8 ? "sure" : token.probability > 0.5 ? "fair" : "doubt";
  bar.style.setProperty("--part", percent(token.probability));
  node.classList.add("said", level);
  node.append(bar);
  return `probability ${percent(token.probability)}`;
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
    node.classList.toggle("kin", kin.has(key) && !looks);
    node.classList.toggle("looked", Boolean(looks));
    if (kin.has(key)) node.style.setProperty("--kin", hueOf(owner));
    if (looks) node.style.setProperty("--look", percent(looks.get(key) || 0));
  }
  const active = state.chosen[0];
  if (active) list.setAttribute("aria-activedescendant", `${element.id || "scope"}-${active}`);
  else list.removeAttribute("aria-activedescendant");
}

// How much each token looked at the patch under the pointer, against the keenest.
function patchLooks() {
  if (state.patch === null) return null;
  const found = new Map();
  for (const key of allKeys()) {
    const look = lookAt(key, state.layer, headShown(), state.patch);
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

function moveToken(step) {
  const keys = allKeys();
  if (!keys.length) return;
  const at = state.chosen.length ? keys.indexOf(state.chosen.at(step > 0 ? -1 : 0)) : -1;
  choose([keys[Math.max(0, Math.min(keys.length - 1, at + step))]], -1);
  list.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
}

list.addEventListener("click", (event) => {
  const node = event.target.closest(".chip");
  if (node) choose([node.dataset.key], -1);
});
list.addEventListener("keydown", (event) => {
  const digit = /^\d$/.test(event.key) ? Number(event.key) : null;
  const moves = {
    ArrowRight: () => moveToken(1),
    ArrowLeft: () => moveToken(-1),
    ArrowUp: () => moveLayer(state.layer + 1),
    ArrowDown: () => moveLayer(state.layer - 1),
    m: () => moveHead(MEAN, false),
  };
  const move = digit === null ? moves[event.key] : () => moveHead(digit, false);
  if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  move();
});
