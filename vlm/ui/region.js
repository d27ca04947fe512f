// Region: a box on the picture; what is in it is asked when it is let go.

const region = { box: null, from: null, run: "" };
const LEAST_SIDE = 1 / 32; // of the picture's; a smaller box is a slip of the hand

const REGION = {
  name: "Draw a region",
  words: "Drag a box around something.",
  keys: "Arrow keys move the box, with Shift they change its size. Enter asks, Escape leaves.",
  ready: () => Boolean(state.value.image) && !areSeveral(),
  leave: () => (region.box = region.from = null),

  pointerdown({ x, y }) {
    Object.assign(region, { from: [x, y], box: null });
  },
  pointermove({ x, y }, held) {
    if (!held || !region.from) return;
    const [fromX, fromY] = region.from;
    region.box = [Math.min(x, fromX), Math.min(y, fromY), Math.max(x, fromX), Math.max(y, fromY)];
  },
  pointerup() {
    region.from = null;
    if (region.box) askRegion();
  },
  pointercancel() {
    region.box = region.from = null;
  },
  press(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (step) return () => moveRegion(step, event.shiftKey);
    return event.key === "Enter" ? () => (region.box ? askRegion() : moveRegion([0, 0])) : null;
  },
  draw(pen, frame) {
    if (region.run !== state.value.run) Object.assign(region, { box: null, run: state.value.run });
    const box = region.box || (tool.name === "region" ? null : regionIn(state.value.question));
    if (!box) return;
    const [x1, y1, x2, y2] = box.map((share, i) => (i % 2 ? frame.y + share * frame.h : frame.x + share * frame.w));
    pen.beginPath();
    pen.rect(x1, y1, x2 - x1, y2 - y1);
    stroke(pen, "#ffffff", 2.5, [3, 4]);
  },
};

// A question's region in shares; null if it is about none.
function regionIn(question) {
  const places = /^caption (?:<loc\d{4}>){4}/.test(question) && question.match(/\d{4}/g).slice(0, 4);
  if (!places || state.picture) return null;
  const [top, left, bottom, right] = places.map((place) => Number(place) / 1024);
  return [left, top, right, bottom];
}

function askRegion() {
  const [x1, y1, x2, y2] = region.box;
  if (x2 - x1 < LEAST_SIDE || y2 - y1 < LEAST_SIDE) {
    region.box = null;
    return say("That was too small. Drag a larger box.");
  }
  const { box } = region;
  trigger("region", { run: state.value.run, box });
  takeTool("");
  region.box = box; // until the answer brings its own
}

function moveRegion([across, down], resize) {
  if (!region.box) region.box = [0.25, 0.25, 0.75, 0.75];
  else {
    const step = [across / 32, down / 32];
    const box = region.box.map((edge, i) => (resize && i < 2 ? edge : edge + step[i % 2]));
    const [x1, y1, x2, y2] = box;
    const fits = x1 >= 0 && y1 >= 0 && x2 <= 1 && y2 <= 1;
    if (fits && x2 - x1 >= LEAST_SIDE && y2 - y1 >= LEAST_SIDE) region.box = box;
  }
  const [left, top, right, bottom] = region.box.map(spaced);
  say(`From ${left} to ${right} across, from ${top} to ${bottom} down.`);
}
