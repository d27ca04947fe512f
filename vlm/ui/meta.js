// Meta: what the run took, and the tries that it is the best of.

const triesRow = element.querySelector(".tries");

function drawMeta() {
  const { tokens, timing, memory, done, cut, stopped, mask_iou: iou } = state.value;
  write(part(".count"), tokens.length);
  write(part(".first"), timing ? seconds(timing.first) : "–");
  write(part(".rate"), timing?.rate ? timing.rate.toFixed(timing.rate < 10 ? 1 : 0) : "–");
  write(part(".cache"), memory ? sizeOf(memory) : "–");
  const given = iou === null ? "" : "begins with your mask, 20 tokens";
  const empty = done && !tokens.length ? "the answer is empty" : given;
  const end = done && cut ? "cut at the maximum of tokens" : empty;
  write(part(".state"), state.waiting || (state.stopped || stopped ? "stopped" : end));
  drawTries();
}

// A button for each try from the start, so that nothing moves when the next begins.
function drawTries() {
  const { settings, tries: told } = state.value;
  const asked = !settings || settings.style === "Greedy" ? 1 : settings.tries;
  const count = Math.max(asked, told.length);
  triesRow.hidden = count < 2;
  while (triesRow.children.length > count) triesRow.lastChild.remove();
  while (triesRow.children.length < count) triesRow.append(tryButton(triesRow.children.length));
  [...triesRow.children].forEach((button, i) => fillTry(button, told[i], i));
}

function tryButton(index) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(document.createElement("b"), document.createElement("span"));
  button.firstChild.textContent = index + 1;
  button.addEventListener("click", () => {
    trigger("try", { run: state.value.tries[index].run });
  });
  return button;
}

function fillTry(button, told, index) {
  const score = told ? told.score.toFixed(2).replace("-", "−") : "…";
  const label = told ? `Try ${index + 1}, mean log-probability ${score}` : `Try ${index + 1}`;
  write(button.lastChild, score);
  mark(button, "title", told ? told.text : "not asked yet");
  mark(button, "aria-label", label);
  mark(button, "aria-pressed", index === state.value.try);
  button.disabled = !told || root.dataset.phase === "running";
}

function seconds(time) {
  return time < 1 ? `${Math.round(time * 1000)} ms` : `${time.toFixed(2)} s`;
}

function sizeOf(bytes) {
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
