// Menu: the published checkpoints and a line to type in; what is chosen is loaded.

const menu = part(".menu");
const [typed, load, list] = ["input", ".load", "ul"].map((name) => menu.querySelector(name));
const opener = part("button.model");

async function openMenu() {
  menu.hidden = false;
  mark(opener, "aria-expanded", true);
  typed.focus();
  if (list.children.length) return;
  list.replaceChildren(...(await server.published({})).map(row));
  filter();
}

function closeMenu() {
  menu.hidden = true;
  mark(opener, "aria-expanded", false);
}

function row({ name, size, does, prompts, fit }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  Object.assign(button, { type: "button", tabIndex: -1, title: `Prompts: ${prompts.join(", ")}` });
  button.dataset.name = name;
  for (const [kind, text] of Object.entries({ name, fit, does, size })) {
    const line = document.createElement("span");
    line.className = kind;
    line.textContent = text;
    button.append(line);
  }
  button.querySelector(".fit").dataset.fit = fit;
  button.addEventListener("click", () => choose(name));
  item.append(button);
  return item;
}

// Every word that is typed must be in a row, in any order.
function filter() {
  const words = typed.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const item of list.children) {
    const text = item.textContent.toLowerCase();
    item.hidden = !words.every((word) => text.includes(word));
  }
  const rows = shownRows();
  for (const button of rows) button.tabIndex = button === rows[0] ? 0 : -1;
  menu.querySelector(".none").hidden = rows.length > 0 || !list.children.length;
  load.disabled = !typed.value.trim();
}

function shownRows() {
  return [...list.querySelectorAll("li:not([hidden]) button")];
}

async function choose(source) {
  try {
    update(await server.choose(source));
  } catch {
    drawLoading("", "", "The server did not answer. Try again in a moment.");
  }
}

function drawLoading(loading, words, error) {
  const line = menu.querySelector(".loading");
  line.hidden = !loading;
  write(line.firstChild, loading ? `${loading}: ${words}` : "");
  const wrong = menu.querySelector(".error");
  write(wrong, error);
  wrong.hidden = !error;
}

function moveRow(step) {
  const rows = shownRows();
  const at = rows.indexOf(document.activeElement);
  if (at + step < 0) typed.focus();
  else rows.at(Math.min(at + step, rows.length - 1))?.focus();
}

opener.addEventListener("click", () => (menu.hidden ? openMenu() : closeMenu()));
typed.addEventListener("input", filter);
menu.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (typed.value.trim()) choose(typed.value);
});
menu.querySelector(".loading button").addEventListener("click", () => {
  choose("");
  typed.focus();
});
menu.addEventListener("keydown", (event) => {
  const moves = {
    ArrowDown: () => moveRow(1),
    ArrowUp: () => moveRow(-1),
    PageDown: () => moveRow(5),
    PageUp: () => moveRow(-5),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
});
element.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || menu.hidden) return;
  event.stopPropagation(); // it would stop the model, too
  closeMenu();
  opener.focus();
});
document.addEventListener("pointerdown", (event) => {
  if (!element.contains(event.target)) closeMenu();
});
