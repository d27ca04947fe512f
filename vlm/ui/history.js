// History: the latest runs of this browser, in its own database.

const MOST = 30;
const OFF = "This browser keeps no data for this page, so history is off here.";
const part = (name) => element.querySelector(name);
const [summary, calm, list, clear] = ["summary", ".calm", "ol", ".clear"].map(part);
const runs = opened();

// Each run: { id, time, thing asked as in permalink.js, answer, example, picture }.
function opened() {
  return new Promise((opened, refused) => {
    const request = indexedDB.open("paliscope", 1);
    request.onupgradeneeded = () =>
      request.result.createObjectStore("runs", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => opened(request.result);
    request.onerror = () => refused(request.error);
  });
}

// The answer of one request to the database, once it has been kept.
async function database(act) {
  const transaction = (await runs).transaction("runs", "readwrite");
  const request = act(transaction.objectStore("runs"));
  return new Promise((done, refused) => {
    transaction.oncomplete = () => done(request.result);
    transaction.onabort = () => refused(transaction.error);
  });
}

async function add({ url, ...run }) {
  const picture = await (await fetch(url)).blob();
  await database((store) => store.add({ ...run, picture, time: Date.now() }));
  const old = (await database((store) => store.getAllKeys())).slice(0, -MOST);
  for (const id of old) await database((store) => store.delete(id));
}

async function change(act) {
  try {
    await act();
    draw(await database((store) => store.getAll()));
  } catch {
    draw([]);
    calm.textContent = OFF;
  }
}

function draw(all) {
  for (const image of list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  summary.textContent = all.length ? `History (${all.length})` : "History";
  list.replaceChildren(...all.reverse().map(row));
  calm.hidden = all.length > 0;
  clear.hidden = !all.length;
}

function row(run) {
  const item = document.createElement("li");
  const [again, remove] = ["again", "remove"].map((name) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: name });
    return button;
  });
  const image = document.createElement("img");
  Object.assign(image, { src: URL.createObjectURL(run.picture), alt: "", loading: "lazy" });
  const words = document.createElement("span");
  words.append(...lines(run));
  again.append(image, words);
  again.title = "Ask this again: picture, prompt and settings come back, and the model answers anew";
  again.addEventListener("click", () => restore(run));
  remove.textContent = "×";
  remove.setAttribute("aria-label", `Remove “${run.prompt}” from the history`);
  remove.addEventListener("click", () => change(() => database((store) => store.delete(run.id))));
  item.append(again, remove);
  return item;
}

function lines(run) {
  const when = new Date(run.time).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  return [["b", run.prompt], ["span", run.answer || "(an empty answer)"], ["time", when]].map(([tag, text]) => {
    const line = document.createElement(tag);
    line.textContent = text;
    return line;
  });
}

// Our own pictures come back by their names, others are sent again.
async function restore({ prompt, start, settings, model, example, picture }) {
  const file = () => upload(new File([picture], "picture.webp", { type: "image/webp" }));
  const place = example ? { example } : { path: (await file()).path };
  trigger("restore", { asked: { prompt, start, settings, model, picture: place } });
}

async function openLink() {
  if (!location.hash.startsWith(LINK)) return;
  const fragment = location.hash;
  // It is taken: what is asked next is not what stands in the address.
  window.history.replaceState(null, "", location.pathname + location.search);
  try {
    const { picture, ...asked } = await askedBy(fragment);
    await restore({ ...asked, example: picture.example, picture: fromBase64(picture.webp || "") });
  } catch {
    trigger("restore", { asked: null }); // What is wrong with it is told there.
  }
}

clear.addEventListener("click", () => change(() => database((store) => store.clear())));
document.addEventListener("paliscope:done", ({ detail }) => change(() => add(detail)));
window.addEventListener("hashchange", openLink);
change(() => runs);
openLink();
