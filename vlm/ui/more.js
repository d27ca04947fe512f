// More: further pictures of the question. What is here is what the server has checked.

const more = part(".more");
const input = part(".add input");
const { most, frames } = props; // read once: a proxy is slow
let busy = false;

function filesHere() {
  return JSON.parse(JSON.stringify(props.value?.files ?? []));
}

function draw() {
  const files = filesHere();
  more.toggleAttribute("data-some", files.length > 0);
  more.toggleAttribute("data-full", files.length + 1 >= most);
  part(".row").hidden = part(".advice").hidden = !files.length;
  write(part(".count"), `${files.length} more, in this order`);
  part("ul").replaceChildren(...files.map(itemOf));
}

function itemOf(file, index) {
  const [item, image, number, button] = ["li", "img", "b", "button"].map((tag) => document.createElement(tag));
  Object.assign(image, { src: file.url, alt: `Picture ${index + 2}` });
  number.textContent = index + 2;
  Object.assign(button, { type: "button", className: "remove", textContent: "×" });
  button.setAttribute("aria-label", `Remove picture ${index + 2}`);
  button.addEventListener("click", () => remove(index));
  item.append(image, number, button);
  return item;
}

function keep(files, words) {
  props.value = { files, told: words };
  draw();
  say(words);
  trigger("drop", {});
}

function remove(index) {
  keep(filesHere().filter((_, i) => i !== index), `Picture ${index + 2} is removed.`);
  const next = more.querySelectorAll(".remove")[Math.min(index, filesHere().length - 1)];
  (next ?? input).focus();
}

async function add(files) {
  if (!files.length) return;
  if (busy) return say("The last ones are still on their way. Try again in a moment.");
  busy = true;
  try {
    const isClip = ({ type }) => type.startsWith("video/");
    const clip = files.some(isClip);
    if (clip && files.length > 1) return say("A clip is asked about alone. Choose only it.");
    if (files.length > most) return say(`These are ${files.length} pictures; at most ${most} are asked.`);
    if (clip) say("Taking frames out of the clip…");
    const given = clip ? await framesOf(files[0], frames) : files;
    say("Sending…");
    const paths = [];
    for (const file of given) paths.push((await upload(file)).path); // alike ones at once would collide
    say("");
    trigger("bring", { paths, clip });
  } catch {
    say("This could not be read or sent. Take a smaller file, or another kind of it.");
  } finally {
    busy = false;
  }
}

function say(words) {
  write(part(".say"), words);
}

input.addEventListener("change", () => {
  const files = [...input.files];
  input.value = "";
  add(files);
});
part(".only").addEventListener("click", () => {
  keep([], "Only the first picture is left.");
  input.focus();
});
watch("value", () => {
  draw();
  say(props.value?.told ?? "");
});
draw();
more.dataset.mounted = "true";
