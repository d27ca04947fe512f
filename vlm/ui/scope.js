// Scope: what is shown now, and the one way in which it changes.

const root = element.querySelector(".scope");
const state = {
  value: null, // what the server sent last
  chosen: [], // keys of the tokens whose heat is shown
  object: -1, // the one whose tokens they are, if they were chosen by it
  cursor: null, // key of the token where the keyboard is
  anchor: null, // key of the token where a span begins
  glance: null, // key of the token under the pointer
  hidden: new Set(), // objects that are not drawn
  threshold: 0, // where masks are cut; 0 leaves them soft
  follow: true, // choose each token as it comes, until the reader chooses one
  layer: 0,
  head: MEAN,
  preview: null, // layer (if another than is kept) and head under the pointer
  patch: null,
  picture: 0, // the one of several that is on the stage
  strength: 0.75,
  contrast: 0, // from -1 to 1
  scale: "image", // or "sinks": the image without them, or "raw"
  blocks: false,
  stopped: false,
  waiting: "", // for its turn, in words
};
let drawing = 0;

function redraw() {
  if (!drawing) drawing = requestAnimationFrame(draw);
}

function draw() {
  drawing = 0;
  drawPicture();
  drawReel();
  drawHeads();
  drawTokens();
  drawLegend();
  drawSheet();
  drawExplain();
  drawTrial();
  drawBusy();
  drawDetail();
  drawObjects();
  drawMeta();
  drawNotice();
  drawToolbar();
  drawChange();
  drawKeep();
  tellLook();
}

// Gradio's value is a proxy, slow to read: it is copied once, and tokens as they come.
function copied(value, before) {
  const tokens = before ? before.tokens : [];
  for (let i = tokens.length; i < value.tokens.length; i++) tokens.push({ ...value.tokens[i] });
  const { objects, prompt, image, more, timing, ...rest } = { ...value, tokens };
  const whole = { ...rest, ...JSON.parse(JSON.stringify({ objects, prompt, image, more, timing })) };
  const first = { image: whole.image, width: whole.width, height: whole.height };
  return { ...whole, pictures: [first, ...whole.more] };
}

function update() {
  if (props.value.renewed && state.value?.run) return; // an answer has come meanwhile
  const other = props.value.run !== maps.run || !props.value.run;
  const value = copied(props.value, other ? null : state.value);
  state.value = value;
  if (other) begin(value);
  putOnStage(value);
  loadPicture(value.image);
  appendTokens(value.tokens);
  if (state.follow && value.tokens.length) follow();
  setPhase(!value.run ? "idle" : value.done ? "done" : state.stopped ? "stopped" : "running");
  if (value.done) prefetch();
  tellDone(value);
  redraw();
}

function begin(value) {
  const before = `${shape.layers},${shape.heads}`;
  resetMaps(value.run, value);
  if (before !== `${shape.layers},${shape.heads}`) {
    buildHeads();
    state.layer = Math.floor(0.6 * shape.layers);
    state.head = MEAN;
  }
  resetTokens(value.prompt);
  Object.assign(state, { follow: true, patch: null, glance: null, stopped: false });
  hold([]);
  state.hidden.clear();
  const hidden = stage.getBoundingClientRect().top > 0.6 * window.innerHeight;
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
  if (value.run && hidden) root.scrollIntoView({ block: "start", behavior });
  keepLook();
}

function setPhase(phase) {
  root.dataset.phase = phase;
  part(".invite").hidden = Boolean(state.value.image);
  // That of the tallest: nothing moves when another of several is shown.
  const ratios = state.value.pictures.map(({ width, height }) => width / height);
  if (state.value.image) stage.style.setProperty("--ratio", Math.min(...ratios));
}

// The newest token is shown as it comes. One question at a time: a slow connection
// skips tokens, it does not fall behind.
function follow() {
  const key = `a${state.value.tokens.length - 1}`;
  if (!state.chosen.length || maps.kept.has(key)) hold([key]);
  if (!maps.asked.size) fetchMaps([key]).then((fresh) => {
    if (fresh && state.follow) hold([key]);
    redraw();
  });
}

// By the reader or by the stream: tokens, their object, and where the keyboard is.
function hold(keys, object = -1, cursor = keys[0] ?? null) {
  Object.assign(state, { chosen: keys, object, cursor, anchor: cursor });
}

async function prefetch() {
  const keys = allKeys().filter((key) => !maps.kept.has(key));
  const room = Math.floor(PREFETCH_BYTES / mapBytes());
  const run = maps.run;
  for (let i = 0; i < Math.min(keys.length, room); i += 8) {
    await fetchMaps(keys.slice(i, i + 8));
    if (run !== maps.run) return;
    if (state.follow && state.value.tokens.length) follow();
    redraw();
  }
  root.dataset.ready = run;
}

function choose(keys, object, cursor) {
  hold(keys, object, cursor);
  Object.assign(state, { follow: false, glance: null });
  fetchAll(keys);
  redraw();
  const piece = keys.length === 1 ? `: ${pieceOf(keys[0])}` : "";
  say(keys.length ? titleOf(keys) + piece : "Nothing is chosen");
}

// The server gives a bounded number at once.
async function fetchAll(keys) {
  const run = maps.run;
  for (let i = 0; i < keys.length && run === maps.run; i += 32) {
    await fetchMaps(keys.slice(i, i + 32));
    redraw();
  }
}

function chooseObject(index) {
  showPicture(0); // boxes lie there
  choose(keysOf(index), index);
  say(`Object ${index + 1}: ${state.value.objects[index].label}`);
}

function pointAt(patch) {
  if (patch === state.patch) return;
  state.patch = patch;
  // Beyond the prefetched ones, the tokens' maps are fetched when first needed.
  if (patch !== null && state.value.done) fetchMaps(allKeys().slice(0, 64)).then(redraw);
  redraw();
}

function movePatch(rows, columns) {
  const at = state.patch ?? -1;
  const row = at < 0 ? 0 : Math.floor(at / shape.columns) + rows;
  const column = at < 0 ? 0 : (at % shape.columns) + columns;
  if (row < 0 || column < 0 || row >= shape.rows || column >= shape.columns) return;
  pointAt(row * shape.columns + column);
  const looks = [...patchLooks()].sort((a, b) => b[1] - a[1]).slice(0, 3);
  const words = looks.map(([key]) => visible(tokenAt(key).text)).join(", ");
  say(`${patchWords()}. ${words ? `Looked here most: ${words}` : ""}`);
}

// Answering or not, the model is at work or will be, and can be stopped.
function drawBusy() {
  if (explain.busy || trial.busy || state.waiting) root.dataset.busy = "true";
  else delete root.dataset.busy;
}

function say(text) {
  part(".say").textContent = text;
}

function drawNotice() {
  const waiting = state.chosen.length && !state.chosen.some((key) => maps.kept.has(key));
  const lost = "The maps of this run are no longer kept. Run it again to see them.";
  part(".notice").hidden = !(waiting && maps.lost);
  part(".notice").textContent = waiting && maps.lost ? lost : "";
}

root.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  pointAt(null);
  // While the model runs, Escape stops it; the page sees to that.
  if (root.dataset.phase !== "running" && !root.dataset.busy) choose([]);
});
canvas.addEventListener("pointermove", (event) => pointAt(patchUnder(event)));
canvas.addEventListener("pointerdown", (event) => pointAt(patchUnder(event)));
canvas.addEventListener("pointerleave", (event) => {
  if (event.pointerType !== "touch") pointAt(null);
});
canvas.addEventListener("click", (event) => {
  const spot = spotUnder(event);
  const object = spot ? objectAt(spot) : -1;
  if (object >= 0) chooseObject(object);
});
canvas.addEventListener("keydown", (event) => {
  const moves = {
    ArrowUp: () => movePatch(-1, 0),
    ArrowDown: () => movePatch(1, 0),
    ArrowLeft: () => movePatch(0, -1),
    ArrowRight: () => movePatch(0, 1),
    Enter: chooseAtPatch,
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
});

function chooseAtPatch() {
  if (state.patch === null) return;
  const [row, column] = [Math.floor(state.patch / shape.columns), state.patch % shape.columns];
  const x = ((column + 0.5) / shape.columns) * state.value.width;
  const y = ((row + 0.5) / shape.rows) * state.value.height;
  const object = objectAt({ x, y });
  if (object >= 0) chooseObject(object);
}

joinGroup();
new ResizeObserver(redraw).observe(stage);
watch("value", update);
watch("stopped_at", () => {
  if (root.dataset.phase !== "running") return;
  state.stopped = true;
  setPhase("stopped");
  prefetch();
  redraw();
});
watch("tried", () => takeTried(JSON.parse(JSON.stringify(props.tried))));
watch("explained", () => takeExplained(JSON.parse(JSON.stringify(props.explained))));
update();
root.dataset.mounted = "true";
