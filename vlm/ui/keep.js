// Keep: take a run away as a picture, as data, as a page, or as a link.

const saveButton = part(".save");
const saveMenu = part(".keep .menu");
const saveTold = part(".keep .told");
const SAVES = {
  png: async () => download(await captioned(), "png"),
  json: async () => download(JSON.stringify(await fromServer("json")), "json"),
  html: async () => download(await fromServer("html"), "html"),
  link: copyLink,
};
const TYPES = { png: "image/png", json: "application/json", html: "text/html" };
const COPY = { side: 448, bytes: 32_000, qualities: [0.85, 0.7, 0.5, 0.3] };
let streaming = false;

function drawKeep() {
  saveButton.disabled = !["done", "stopped"].includes(root.dataset.phase);
}

async function save(kind) {
  closeMenu();
  saveButton.focus();
  try {
    await SAVES[kind]();
  } catch (error) {
    tell(error.message);
  }
}

async function fromServer(kind) {
  let reply;
  try {
    reply = await server.export({ run: state.value.run, kind });
  } catch {
    throw new Error("The server did not answer. Try again in a moment.");
  }
  if (reply.error) throw new Error(reply.error);
  return reply[kind];
}

function download(content, kind) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(new Blob([content], { type: TYPES[kind] }));
  anchor.download = `paliscope-${plain(state.value.question)}.${kind}`;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60_000);
  tell(`Saved as ${anchor.download}`);
}

// Letters and digits that every file system takes.
function plain(prompt) {
  const words = prompt.normalize("NFKD").toLowerCase().match(/[a-z0-9]+/g) || ["run"];
  return words.join("-").slice(0, 60);
}

async function copyLink() {
  if (areSeveral()) throw new Error("A link has room for one picture. Save the page or the data instead.");
  const { example, webp, size } = await pictureInLink();
  const link = await linkTo({ ...asked(), picture: example ? { example } : { webp } });
  const copy = size ? ` It holds a copy of the picture of ${size} pixels, so the answer may differ a little.` : "";
  try {
    await navigator.clipboard.writeText(link);
    tell(`Link copied.${copy}`);
  } catch {
    tell(`The browser keeps its clipboard closed: copy the link by hand.${copy}`, link);
  }
}

// A start that was given as ids is told in letters, as the reader would type it.
function asked() {
  const { question, start, settings, model, tokens, forced } = state.value;
  const given = tokens.slice(0, forced).map(({ text }) => text).join("");
  return { prompt: question, start: Array.isArray(start) ? given : start, settings, model };
}

// The name of one of our own pictures, or a copy of another's.
async function pictureInLink() {
  const example = await exampleName();
  if (example) return { example };
  const { blob, size } = await smallCopy(picture.image);
  return { webp: toBase64(new Uint8Array(await blob.arrayBuffer())), size };
}

// Null where the server does not tell: a copy of the picture does as well.
function exampleName() {
  return fromServer("example").catch(() => null);
}

async function smallCopy(image) {
  for (let side = COPY.side; ; side *= 0.8) {
    const scale = Math.min(1, side / Math.max(image.naturalWidth, image.naturalHeight));
    const surface = document.createElement("canvas");
    fit(surface, Math.max(1, image.naturalWidth * scale), Math.max(1, image.naturalHeight * scale));
    surface.getContext("2d").drawImage(image, 0, 0, surface.width, surface.height);
    for (const quality of COPY.qualities) {
      const blob = await new Promise((taken) => surface.toBlob(taken, "image/webp", quality));
      if (blob.size <= COPY.bytes) return { blob, size: `${surface.width} × ${surface.height}` };
    }
  }
}

// What has just ended is told once, to the history or whoever listens.
async function tellDone({ done, run, text, image }) {
  const ended = done && streaming;
  streaming = Boolean(run) && !done;
  if (!ended || areSeveral()) return; // the history brings back one picture
  const answer = text.replace(/<(loc|seg)\d+>/g, "").trim();
  const detail = { ...asked(), answer, url: image.url };
  detail.example = await exampleName();
  document.dispatchEvent(new CustomEvent("paliscope:done", { detail }));
}

// The menu, as https://www.w3.org/WAI/ARIA/apg/patterns/menu-button/ has it.
function openMenu(index) {
  saveTold.hidden = true;
  saveMenu.hidden = false;
  saveButton.setAttribute("aria-expanded", "true");
  focusItem(index);
}

function closeMenu() {
  saveMenu.hidden = true;
  saveButton.setAttribute("aria-expanded", "false");
}

// Counted round and round; what is hidden is passed over.
function focusItem(index) {
  const items = shownItems();
  items.at(index % items.length).focus();
}

function moveItem(step) {
  focusItem(shownItems().indexOf(document.activeElement) + step);
}

function shownItems() {
  return [...saveMenu.children].filter((item) => item.offsetParent);
}

// A word about what was done, where the menu was. A link is shown to copy it by hand.
function tell(text, link = "") {
  const [line, field] = saveTold.children;
  line.textContent = text;
  field.hidden = !link;
  field.value = link;
  saveTold.hidden = false;
  say(text);
  if (link) field.select();
}

saveButton.addEventListener("click", () => (saveMenu.hidden ? openMenu(0) : closeMenu()));
saveButton.addEventListener("keydown", (event) => {
  const index = { ArrowDown: 0, ArrowUp: -1 }[event.key];
  if (index === undefined) return;
  event.preventDefault();
  openMenu(index);
});
saveMenu.addEventListener("click", (event) => {
  const item = event.target.closest("[data-save]");
  if (item) save(item.dataset.save);
});
saveMenu.addEventListener("keydown", (event) => {
  const moves = {
    ArrowDown: () => moveItem(1),
    ArrowUp: () => moveItem(-1),
    Home: () => focusItem(0),
    End: () => focusItem(-1),
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
});
part(".keep").addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || (saveMenu.hidden && saveTold.hidden)) return;
  event.stopPropagation();
  saveTold.hidden = true;
  closeMenu();
  saveButton.focus();
});
part(".keep").addEventListener("focusout", (event) => {
  if (part(".keep").contains(event.relatedTarget)) return;
  saveTold.hidden = true;
  closeMenu();
});

// The picture as it is shown, over a strip that says what it shows.
function captioned() {
  const { frame } = picture;
  if (!frame) throw new Error("The picture has not come yet. Try again in a moment.");
  const ratio = canvas.width / canvas.clientWidth;
  const width = Math.max(frame.w, 480);
  const surface = document.createElement("canvas");
  const pen = surface.getContext("2d");
  const lines = captionLines(pen, width - 32);
  const height = frame.h + 28 + lines.reduce((sum, line) => sum + line.step, 0);
  fit(surface, width * ratio, height * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = colorOf("--card");
  pen.fillRect(0, 0, width, height);
  const cut = [frame.x, frame.y, frame.w, frame.h];
  pen.drawImage(canvas, ...cut.map((edge) => edge * ratio), (width - frame.w) / 2, 0, frame.w, frame.h);
  let y = frame.h + 12;
  for (const { text, font, color, step } of lines) {
    Object.assign(pen, { font, fillStyle: color });
    pen.fillText(text, 16, (y += step));
  }
  return new Promise((taken) => surface.toBlob(taken, TYPES.png));
}

function captionLines(pen, room) {
  const mono = getComputedStyle(part(".piece")).fontFamily;
  const sans = getComputedStyle(element).fontFamily;
  const { question, text, model } = state.value;
  const head = headName(state.layer, headShown());
  const tokens = state.chosen.map((key) => tokenAt(key).text).join("").trim();
  const which = areSeveral() ? ` in picture ${state.picture + 1} of ${state.value.pictures.length}` : "";
  const look = `Where “${tokens}” looked${which}: layer ${state.layer}, ${head} · `;
  return [
    [question, `600 15px ${mono}`, "--ink", 22],
    [text || "(an empty answer)", `13.5px ${mono}`, "--ink", 20],
    [`${tokens && look}${model}`, `12.5px ${sans}`, "--mute", 22],
  ].flatMap(([words, font, color, step]) => {
    pen.font = font;
    const lines = words.split("\n").flatMap((line) => wrapped(pen, line, room));
    return lines.map((text) => ({ text, font, color: colorOf(color), step }));
  });
}

// Lines break after spaces and after tokens such as <loc0123>, else between letters.
function wrapped(pen, text, room) {
  const fits = (line) => pen.measureText(line).width <= room;
  const lines = [""];
  const add = (piece) => {
    if (fits(lines.at(-1) + piece)) lines[lines.length - 1] += piece;
    else lines.push(piece.trimStart());
  };
  for (const piece of text.match(/[^\s>]*[\s>]|[^\s>]+/g) || []) {
    if (fits(piece)) add(piece);
    else [...piece].forEach(add);
  }
  return lines;
}

const colorOf = (name) => getComputedStyle(element).getPropertyValue(name);
