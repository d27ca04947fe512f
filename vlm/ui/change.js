// Change: an earlier answer, and how likely the model finds it on the changed picture.

const FAINTEST = 5e-5; // half of the last digit that the probabilities before have
const change = { run: "" };

function drawChange() {
  const { before, run, text } = state.value;
  part(".change").hidden = !before;
  if (!before) return;
  part(".change .younger").textContent = text.trim() || "(nothing)";
  if (change.run === run) return;
  change.run = run;
  part(".change .older").textContent = before.text.trim() || "(nothing)";
  const shifts = before.tokens.map((token, i) => shiftOf(token, before.now[i].probability));
  part(".change .verdict").textContent = verdictOn(shifts);
  shifts.sort((a, b) => Math.abs(b.change) - Math.abs(a.change));
  part(".shifts").replaceChildren(...shifts.map(shiftRow));
}

// `change` is in natural logarithms, so that of an answer is the sum over its tokens.
function shiftOf({ text, probability }, now) {
  const log = (p, least) => Math.log(Math.max(p, least));
  const change = log(now, 1e-30) - log(probability, FAINTEST);
  return { text, before: probability, now, change };
}

function verdictOn(shifts) {
  if (!shifts.length) return "The old answer was empty: there is nothing to weigh.";
  const change = shifts.reduce((sum, shift) => sum + shift.change, 0);
  const times = Math.exp(Math.abs(change));
  if (times < 1.05) return "The old answer is as likely as it was.";
  const count = times >= 1e6 ? "more than a million" : times < 9.95 ? times.toFixed(1) : Math.round(times).toLocaleString("en");
  return `The old answer has become ${count} times ${change < 0 ? "less" : "more"} likely.`;
}

function shiftRow({ text, before, now }, index) {
  const row = document.createElement("div");
  const [piece, bars, figures] = ["b", "i", "span"].map((name) => document.createElement(name));
  row.setAttribute("role", "listitem");
  row.className = index ? "" : "most";
  piece.textContent = visible(text);
  bars.style.setProperty("--before", percent(before));
  bars.style.setProperty("--now", percent(now));
  figures.textContent = `${spaced(before)} → ${spaced(now)}`;
  row.append(piece, bars, figures);
  return row;
}
