// Paint: a part of the picture is painted over in grey, and the question asked again;
// or what is painted is a mask, and its tokens begin the answer.

const GREY = "rgb(127, 127, 127)"; // the middle of what the model takes
const MAX_DABS = 2000;
const paint = { dabs: [], size: 0.12, at: null, run: "" };

const PAINT = {
  name: "Paint over",
  words: "",
  keys: "Arrow keys move over patches, Space paints one. Enter asks again, Tab leads to a mask, Escape leaves.",
  ready: () => root.dataset.phase === "done" && !areSeveral(),
  leave: () => Object.assign(paint, { dabs: [], at: null }),

  pointerdown: (share) => dab(share, paint.size / 2),
  pointermove(share, held) {
    paint.at = share;
    const last = paint.dabs.at(-1);
    const { width, height } = state.value;
    const gone = last && Math.hypot(share.x - last.x, (share.y * height) / width - last.y);
    if (held && !(gone < paint.size / 6)) dab(share, paint.size / 2);
  },
  pointerleave: () => (paint.at = null),
  press(event) {
    const moves = {
      ArrowUp: () => movePatch(-1, 0),
      ArrowDown: () => movePatch(1, 0),
      ArrowLeft: () => movePatch(0, -1),
      ArrowRight: () => movePatch(0, 1),
      " ": paintPatch,
      Enter: () => askPainted("paint"),
    };
    return moves[event.key];
  },
  draw(pen, frame) {
    if (paint.run !== state.value.run) Object.assign(paint, { dabs: [], run: state.value.run });
    const circle = (x, y, r) => {
      pen.beginPath();
      pen.arc(frame.x + x * frame.w, frame.y + y * frame.w, r * frame.w, 0, 2 * Math.PI);
    };
    pen.fillStyle = GREY;
    for (const { x, y, r } of paint.dabs) {
      circle(x, y, r);
      pen.fill();
    }
    if (tool.name !== "paint" || !paint.at) return;
    circle(paint.at.x, (paint.at.y * frame.h) / frame.w, paint.size / 2);
    stroke(pen, "#ffffff", 1.5, []);
  },
};

// A dab is a disc: x, y and radius, all in shares of the picture's width.
function dab({ x, y }, r) {
  if (paint.dabs.length === MAX_DABS) return say("That is all the paint there is. Ask again, or clear it.");
  paint.dabs.push({ x, y: (y * state.value.height) / state.value.width, r });
}

// The disc about a patch, its corners included.
function paintPatch() {
  if (state.patch === null) return movePatch(0, 0);
  const [row, column] = [Math.floor(state.patch / shape.columns), state.patch % shape.columns];
  const { width, height } = state.value;
  const r = Math.hypot(1 / shape.columns, height / width / shape.rows) / 2;
  dab({ x: (column + 0.5) / shape.columns, y: (row + 0.5) / shape.rows }, Math.min(r, 0.2));
  say(`Painted row ${row + 1}, column ${column + 1}.`);
}

// By the event "paint" in grey, by "mask" as a mask.
function askPainted(event) {
  if (!paint.dabs.length) return say("Paint over something first.");
  trigger(event, { run: state.value.run, strokes: paint.dabs });
}

element.querySelector(".easel input").addEventListener("input", (event) => {
  paint.size = event.target.value / 100;
});
element.querySelector(".easel .clear").addEventListener("click", () => {
  paint.dabs = [];
  redraw();
});
element.querySelector(".easel .again").addEventListener("click", () => askPainted("paint"));
element.querySelector(".easel .as-mask").addEventListener("click", () => askPainted("mask"));
