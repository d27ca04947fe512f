// Waiting: how many questions are answered before this one.

// Gradio keeps the place in its status tracker, which lies beside the viewer, unseen:
// "queue: 2/5 | 1.3s". A page that was saved has none.
const SOON = 300; // milliseconds in which a turn may come without a word
const block = part(".scope").closest(".block");
const tracker = block?.querySelector("[data-testid=status-tracker]");
let since = null; // when it began to wait

// Called at least with each tenth of a second, which the tracker counts.
function drawPlace() {
  const place = tracker.textContent.match(/queue: (\d+)\/\d+/);
  since = place ? since ?? performance.now() : null;
  const late = place && performance.now() - since > SOON;
  const words = late ? placeWords(place[1] - 1) : "";
  if (words === state.waiting) return;
  state.waiting = words;
  if (words) say(words);
  redraw();
}

function placeWords(before) {
  if (!before) return "waiting: yours is the next question";
  return `waiting: ${before} ${before === 1 ? "question comes" : "questions come"} before yours`;
}

if (tracker) {
  const all = { childList: true, characterData: true, subtree: true };
  new MutationObserver(drawPlace).observe(tracker, all);
}
