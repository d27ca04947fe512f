// Explain: other ways to say where a token came from, beside attention, on one scale.

const ways = part(".ways");
const wayButtons = [...(props.ways?.each ?? [])].map(wayButton);
const mostTokens = props.ways?.most; // read once: a proxy is slow
const explain = {
  run: "",
  picture: 0, // that the maps are of
  tokens: [], // places in the answer
  heats: new Map(), // by the way's name: what heatOf gives
  shown: null, // the way whose map lies on the picture, in place of attention
  pointed: null,
  part: 0, // of the next map that is done, where it takes long
  busy: false,
  left: false, // for a test: what is still on its way comes too late
  stopped: 0, // when, by the server's clock; what is older comes too late
};

// One more map, or that there will be none.
function takeExplained({ run, tokens, picture, heats, part, done, at }) {
  redraw();
  if (!run) Object.assign(explain, { busy: false, stopped: at }); // or it has failed
  const asked = run === explain.run && picture === explain.picture && tokens?.join() === explain.tokens.join();
  if (explain.left || run !== maps.run || !asked || at < explain.stopped) return;
  Object.assign(explain, { busy: !done, part });
  for (const [name, rows] of Object.entries(heats)) {
    if (!explain.heats.has(name)) explain.heats.set(name, heatFrom(name, rows));
  }
  if (done) say("All ways have been followed");
}

function heatFrom(name, rows) {
  const patches = Float32Array.from([...rows].flatMap((row) => [...row]));
  const { peak, mass } = extent(patches);
  const { title } = ways.querySelector(`[data-way=${name}]`);
  return { title, patches, peak, mass, ceiling: peak, shares: null };
}

// The map that takes the place of attention on the picture, if there is one.
function wayShown() {
  const name = explain.pointed ?? explain.shown;
  return isExplained() ? explain.heats.get(name) ?? null : null;
}

function isExplained() {
  const same = explain.run === maps.run && explain.picture === state.picture;
  return same && explainable().join() === explain.tokens.join();
}

// Places of the chosen tokens in the answer; the server takes no more of them.
function explainable() {
  const said = state.chosen.filter((key) => key[0] === "a");
  return said.slice(0, mostTokens).map((key) => Number(key.slice(1)));
}

function drawExplain() {
  const known = isExplained();
  if (explain.run !== maps.run) explain.busy = false;
  const ended = ["done", "stopped"].includes(root.dataset.phase);
  part(".why").disabled = !ended || explain.busy || !explainable().length || (known && explain.heats.size === wayButtons.length);
  write(part(".why"), explain.busy ? "…" : "Explain");
  for (const button of wayButtons) drawWay(button, known);
  wayThumbs.draw(wayButtons.map(({ dataset }) => known ? explain.heats.get(dataset.way) : null));
  const name = known ? explain.pointed ?? explain.shown : null;
  const button = name && ways.querySelector(`[data-way=${name}]`);
  write(part(".shows"), button ? button.dataset.shows : explainWords(known));
  write(part(".hides"), button ? button.dataset.hides : "");
  write(part(".fits"), button ? fitWords(explain.heats.get(name)) : "");
}

function drawWay(button, known) {
  const name = button.dataset.way;
  const heat = known ? explain.heats.get(name) : null;
  button.disabled = !heat;
  mark(button, "aria-pressed", Boolean(heat) && explain.shown === name);
}

function explainWords(known) {
  if (explain.busy) {
    const next = wayButtons[explain.heats.size]?.title;
    const part = explain.part ? `: ${next}, ${percent(explain.part)}` : " …";
    return `${explain.heats.size} of ${wayButtons.length}${part}`;
  }
  if (known && explain.heats.size) return "Point at a way to see its map, click to keep it.";
  return explainable().length ? "Press Explain to ask where this came from." : "Choose a token of the answer.";
}

// How well a map fits the box that the chosen tokens stand for.
function fitWords(heat) {
  const box = boxChosen();
  if (!box || !heat) return "";
  const weights = patchesInBox(box);
  const inside = shareOf(heat, weights);
  const even = weights.reduce((sum, weight) => sum + weight, 0) / shape.patches;
  const words = isInBox(heat.patches.indexOf(heat.peak), box) ? "its peak is inside" : "its peak is outside";
  return `${spaced(inside)} of it is in the box, where an even map has ${spaced(even)}; ${words}.`;
}

// A patch lies where its middle does.
function isInBox(patch, [x1, y1, x2, y2]) {
  const x = (((patch % shape.columns) + 0.5) / shape.columns) * state.value.width;
  const y = ((Math.floor(patch / shape.columns) + 0.5) / shape.rows) * state.value.height;
  return x1 <= x && x <= x2 && y1 <= y && y <= y2;
}

function keepWay(name) {
  explain.shown = explain.shown === name ? null : name;
  redraw();
  const button = ways.querySelector(`[data-way=${name}]`);
  say(explain.shown ? `${button.title}: ${button.dataset.shows} ${fitWords(explain.heats.get(name))}` : "Attention");
}

function wayButton({ name, title, shows, hides }) {
  const button = document.createElement("button");
  const words = document.createElement("span");
  words.textContent = title;
  Object.assign(button, { type: "button", title, disabled: true });
  Object.assign(button.dataset, { way: name, shows, hides });
  button.append(thumbNode(), words);
  return button;
}

ways.replaceChildren(...wayButtons);
const wayThumbs = thumbsOn(ways);
part(".why").addEventListener("click", () => {
  Object.assign(explain, { run: maps.run, picture: state.picture, tokens: explainable(), heats: new Map(), shown: null, part: 0, busy: true, left: false });
  leaveTrial();
  trigger("explain", { run: explain.run, tokens: explain.tokens, picture: explain.picture });
  redraw();
});
ways.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) keepWay(button.dataset.way);
});
ways.addEventListener("pointerover", (event) => {
  const button = event.target.closest("button:enabled");
  if (event.pointerType === "touch" || button?.dataset.way === explain.pointed) return;
  explain.pointed = button?.dataset.way ?? null;
  redraw();
});
ways.addEventListener("pointerleave", () => {
  explain.pointed = null;
  redraw();
});
