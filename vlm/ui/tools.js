// Tools: a region that is drawn on the picture, or a part of it that is painted over.
// One is in hand at a time; then the pointer and the keys on the picture are its own.

const TOOLS = { region: REGION, paint: PAINT };
const tool = { name: "" };
const easel = element.querySelector(".easel");

function takeTool(name) {
  TOOLS[tool.name]?.leave();
  tool.name = name;
  root.dataset.tool = name;
  for (const button of part(".tools").children) {
    button.setAttribute("aria-pressed", button.dataset.tool === name);
  }
  easel.hidden = !name;
  if (name) {
    easel.setAttribute("aria-label", TOOLS[name].name);
    easel.querySelector("span").textContent = TOOLS[name].words;
    canvas.focus({ preventScroll: true });
    say(`${TOOLS[name].name}. ${TOOLS[name].keys}`);
  }
  redraw();
}

function drawToolbar() {
  for (const button of part(".tools").children) {
    const own = TOOLS[button.dataset.tool];
    button.disabled = !own.ready();
    mark(button, "title", areSeveral() ? `${own.name}: only where one picture is asked about` : own.title);
  }
  if (tool.name && !TOOLS[tool.name].ready()) takeTool("");
}

function drawTools(pen, frame) {
  pen.save();
  pen.beginPath();
  pen.rect(frame.x, frame.y, frame.w, frame.h);
  pen.clip();
  for (const each of Object.values(TOOLS)) each.draw(pen, frame);
  pen.restore();
}

// Where the pointer is, in shares of the picture's width and height; never beside it.
function shareUnder(event) {
  const bounds = canvas.getBoundingClientRect();
  const inside = (at) => Math.max(0, Math.min(1, at));
  return {
    x: inside((event.clientX - bounds.left - picture.frame.x) / picture.frame.w),
    y: inside((event.clientY - bounds.top - picture.frame.y) / picture.frame.h),
  };
}

// On the stage and while going down, so before all that listens on the canvas itself.
function route(event) {
  const own = TOOLS[tool.name];
  if (!own || event.target !== canvas || !picture.frame) return;
  event.stopPropagation();
  if (event.type === "keydown") return pressKey(own, event);
  if (event.type === "pointerdown") {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    event.preventDefault();
  }
  const held = canvas.hasPointerCapture(event.pointerId);
  easel.classList.toggle("faint", held && event.type !== "pointerup");
  own[event.type]?.(shareUnder(event), held);
  redraw();
}

function pressKey(own, event) {
  const act = event.key === "Escape" ? () => takeTool("") : own.press(event);
  if (!act) return;
  event.preventDefault();
  act();
  redraw();
}

for (const button of part(".tools").children) TOOLS[button.dataset.tool].title = button.title;
for (const kind of [
  "pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave", "click", "keydown",
]) {
  stage.addEventListener(kind, route, true);
}
part(".tools").addEventListener("click", (event) => {
  const { tool: name } = event.target.closest("button")?.dataset || {};
  if (name) takeTool(name === tool.name ? "" : name);
});
easel.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.stopPropagation();
  takeTool("");
});
