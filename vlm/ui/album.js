// Album: the pictures that are chosen. The value that is written is what is asked.

const album = part(".album");
const FILE = { _type: "gradio.FileData" };
const { chosen: begun, shelf } = JSON.parse(JSON.stringify(props.value));
const state = { chosen: begun, coming: 0 };

// A picture's name, as a person would say it.
function named(file) {
  const name = file.orig_name || file.path.split(/[/\\]/).pop();
  return name.replace(/\.\w+$/, "");
}

function draw() {
  const { chosen, coming } = state;
  const full = chosen.length + coming >= props.most;
  write(part(".count"), `${chosen.length} of at most ${props.most}`);
  part(".chosen").replaceChildren(...chosen.map(pictureOf), ...(full ? [] : [adding()]));
  for (const button of part(".shelf").children) button.disabled = full;
}

function pictureOf(file, index) {
  const [item, image, button] = ["li", "img", "button"].map((tag) => document.createElement(tag));
  Object.assign(image, { src: file.url, alt: `Picture ${index + 1}: ${named(file)}` });
  Object.assign(button, { type: "button", className: "remove", textContent: "×" });
  button.setAttribute("aria-label", `Remove picture ${index + 1}: ${named(file)}`);
  button.addEventListener("click", () => remove(index));
  item.append(image, button);
  return item;
}

function adding() {
  const [item, label, input] = ["li", "label", "input"].map((tag) => document.createElement(tag));
  Object.assign(input, { type: "file", accept: "image/*", multiple: true });
  input.addEventListener("change", () => add([...input.files]));
  label.className = "add";
  label.append("Add, or drop here", input);
  item.append(label);
  return item;
}

function change(chosen, told) {
  state.chosen = chosen;
  props.value = { chosen, shelf };
  draw();
  say(told);
}

function remove(index) {
  const name = named(state.chosen[index]);
  change(state.chosen.filter((_, i) => i !== index), `${name} is removed.`);
  const next = album.querySelectorAll(".remove")[Math.min(index, state.chosen.length - 1)];
  (next ?? part(".add input")).focus();
}

async function add(files) {
  const room = props.most - state.chosen.length - state.coming;
  const taken = files.slice(0, Math.max(0, room));
  if (!taken.length) return say(files.length ? `There is room for ${props.most} pictures.` : "");
  state.coming += taken.length;
  say("Sending…");
  const sent = await Promise.allSettled(taken.map(send));
  state.coming -= taken.length;
  const come = sent.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  const left = files.length - taken.length;
  const words = [come.length ? `${come.map(named).join(", ")}: added.` : ""];
  if (come.length < taken.length) words.push("What is too large or cut off on its way was not taken.");
  if (left) words.push(`${left} more had no room.`);
  change([...state.chosen, ...come], words.filter(Boolean).join(" "));
}

async function send(file) {
  const { path, url } = await upload(file);
  return { path, url, orig_name: file.name, meta: FILE };
}

function say(words) {
  write(part(".say"), words);
}

part(".shelf").replaceChildren(...shelf.map((file) => {
  const [button, image] = ["button", "img"].map((tag) => document.createElement(tag));
  Object.assign(button, { type: "button", title: `Add ${named(file)}` });
  Object.assign(image, { src: file.url, alt: `Add ${named(file)}` });
  button.append(image);
  button.addEventListener("click", () => change([...state.chosen, file], `${named(file)} is added.`));
  return button;
}));

for (const kind of ["dragenter", "dragover"]) {
  album.addEventListener(kind, (event) => {
    event.preventDefault();
    album.classList.add("over");
  });
}
album.addEventListener("dragleave", (event) => {
  if (!album.contains(event.relatedTarget)) album.classList.remove("over");
});
album.addEventListener("drop", (event) => {
  event.preventDefault();
  album.classList.remove("over");
  add([...event.dataTransfer.files]);
});
draw();
album.dataset.mounted = "true";
