// Trial: one of five tests of one token of the answer, run when the reader asks for it.

const TRIALS = { layers: LAYERS, knockout: CUT, faithfulness: CURVES, patching: PATCH, shuffled: SHUFFLED };
const trialCard = part(".trial");
const tests = JSON.parse(JSON.stringify(props.trials ?? null)); // once: a proxy is slow
const trial = {
  kind: "layers",
  run: "",
  token: -1, // place in the answer
  found: new Map(), // by the test and what it was told: {done, of, found, over}
  number: 0, // of what was asked last, so that older news is known
  asked: "", // the key that its news belongs to
  over: "", // the map that it is told of
  busy: false,
  stopped: 0, // when, by the server's clock; what is older comes too late
};

function takeTried(news) {
  redraw();
  if (!news.run) Object.assign(trial, { busy: false, stopped: news.at }); // or it has failed
  if (!isAwaited(news)) return;
  trial.busy = !news.ended;
  trial.found.set(trial.asked, { ...news, over: trial.over });
  if (news.ended) say(`${trialNamed(news.trial).title}: ${TRIALS[news.trial].words(news.found)}`);
}

// One thing at a time: a test that is running ends, and what is on its way is too late.
function leaveTrial() {
  Object.assign(trial, { busy: false, number: trial.number + 1 });
}

function isAwaited({ run, token, number, at }) {
  return run === maps.run && token === triedToken() && number === trial.number && at > trial.stopped;
}

// The first chosen token of the answer; -1 if there is none.
function triedToken() {
  return explainable()[0] ?? -1;
}

function trialNamed(name) {
  return tests.each.find((each) => each.name === name);
}

const trialKey = () => `${trial.kind} ${state.picture} ${TRIALS[trial.kind].key()}`;

function drawTrial() {
  if (!tests) return;
  const token = triedToken();
  if (trial.run !== maps.run || trial.token !== token) {
    Object.assign(trial, { run: maps.run, token });
    leaveTrial();
    trial.found.clear();
  }
  const kind = TRIALS[trial.kind];
  const known = trial.found.get(trialKey());
  const ended = ["done", "stopped"].includes(root.dataset.phase);
  const fresh = known?.ended && (!kind.mapped || known.over === mapName());
  part(".try").disabled = !ended || token < 0 || trial.busy || Boolean(fresh) || !kind.ready();
  write(part(".try"), trial.busy ? progressWords() : "Test");
  write(part(".subject"), token < 0 ? "" : `${visible(tokenAt(`a${token}`).text)}, token ${token + 1} of ${state.value.tokens.length}`);
  const { shows, hides } = trialNamed(trial.kind);
  write(part(".tells"), token < 0 ? "Choose a token of the answer, then press Test." : shows);
  write(part(".omits"), token < 0 ? "" : hides);
  kind.draw(trialCard.querySelector(`[data-trial=${trial.kind}]`), known?.found, known?.over);
}

function progressWords() {
  const news = trial.found.get(trial.asked);
  return news ? `${news.done} of ${news.of}` : "…";
}

function showTrial(name) {
  trial.kind = name;
  for (const button of part(".kinds").children) mark(button, "aria-pressed", button.dataset.kind === name);
  for (const panel of trialCard.querySelectorAll("[data-trial]")) panel.hidden = panel.dataset.trial !== name;
}

// Left and right in a group of buttons: the next one, and it is pressed.
function walkSwitch(group) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...group.querySelectorAll("button:enabled")];
    const next = buttons[buttons.indexOf(event.target) + step];
    if (!step) return;
    event.preventDefault();
    next?.focus();
    next?.click();
  });
}

// The map on the picture that is kept, not one that is only pointed at.
function mapKept() {
  const way = isExplained() ? explain.heats.get(explain.shown) : null;
  return way ?? heatShown(state.chosen, state.layer, state.head);
}

function mapName() {
  const many = state.chosen.length > 1 ? ` of ${state.chosen.length} tokens` : "";
  const way = isExplained() ? explain.heats.get(explain.shown) : null;
  if (way) return `${way.title}${many}`;
  const head = headName(state.layer, state.head);
  const sinks = state.scale === "sinks" ? ", no sinks" : "";
  return `attention${many}, layer ${state.layer}, ${head}${sinks}`;
}

function mapRows() {
  const { patches } = mapKept();
  return Array.from({ length: shape.rows }, (_, row) =>
    Array.from(patches.subarray(row * shape.columns, (row + 1) * shape.columns), (value) => Number(value.toPrecision(4))));
}

function trialButton({ name, title }) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: title });
  button.dataset.kind = name;
  return button;
}

part(".kinds").replaceChildren(...(tests?.each ?? []).map(trialButton));
showTrial(trial.kind);
for (const group of trialCard.querySelectorAll(".switch")) walkSwitch(group);
part(".kinds").addEventListener("click", (event) => {
  const { kind } = event.target.closest("button")?.dataset ?? {};
  if (!kind) return;
  showTrial(kind);
  redraw();
});
part(".try").addEventListener("click", () => {
  const kind = TRIALS[trial.kind];
  Object.assign(trial, { asked: trialKey(), over: kind.mapped ? mapName() : "", number: trial.number + 1, busy: true });
  trial.found.delete(trial.asked);
  Object.assign(explain, { busy: false, left: true });
  const { run, token, number } = trial;
  trigger("test", { run, token, number, trial: trial.kind, picture: state.picture, ...kind.told() });
  redraw();
});
