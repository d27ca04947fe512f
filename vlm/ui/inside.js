// Inside: fills the figures of inside.html in, and keeps what is chosen in it.

const state = {
  value: null, // what the server sent last
  patch: null, // none yet: the middle one
  within: null, // where a patch looked, in every layer and head of the vision tower
  token: 0, // a row of the mask: 0 is the image, 1 is <bos>
};
let updates = 0;
let drawing = 0;

function update() {
  // Gradio's value is a proxy, slow to read: it is copied once.
  const value = JSON.parse(JSON.stringify(props.value));
  if (!value) return;
  state.value = value;
  root.dataset.known = value.known;
  part(".notice").textContent = value.notice;
  part(".notice").hidden = !value.notice;
  fillFacts(value.facts);
  showPicture(value.picture);
  showSequence(value.tokens || [], value.images);
  showIds(value.ids || []);
  showMasks(value.masks || []);
  showCache(value.cache || []);
  showParts(value.parts || []);
  showBox(value.box);
  root.dataset.updates = ++updates;
}

// A figure that is not known is a dash; what depends on one is there or not.
function fillFacts(facts) {
  for (const node of root.querySelectorAll("[data-fact]")) {
    node.textContent = facts[node.dataset.fact] ?? "–";
  }
  for (const node of root.querySelectorAll("[data-if]")) node.hidden = !(node.dataset.if in facts);
  for (const node of root.querySelectorAll("[data-unless]")) {
    node.hidden = node.dataset.unless in facts;
  }
}

function redraw() {
  if (state.value && !drawing) drawing = requestAnimationFrame(draw);
}

function draw() {
  drawing = 0;
  drawPatches();
  drawMasks();
  drawPlaced();
}

// The Probe tab's answer may end while this one is looked at.
const asked = document.querySelector("#scope [data-phase]");
new MutationObserver(() => {
  if (element.offsetParent && asked.dataset.phase !== "running") trigger("look");
}).observe(asked, { attributeFilter: ["data-phase"] });
new MutationObserver(redraw).observe(document.body, { attributeFilter: ["class"] });
new ResizeObserver(redraw).observe(root);
watch("value", update);
watch("within", () => showTower(JSON.parse(JSON.stringify(props.within))));
update();
