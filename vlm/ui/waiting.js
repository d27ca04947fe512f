// Waiting: how many questions are answered before this one.

// Gradio keeps the place in its status tracker, which lies beside the viewer, unseen:
// "queue: 2/5". A page that was saved has none.
const block = part(".scope").closest(".block");
const tracker = block?.querySelector("[data-testid=status-tracker]");

function drawPlace() {
  const place = tracker.textContent.match(/queue: (\d+)\/\d+/);
  const words = place ? placeWords(place[1] - 1) : "";
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
