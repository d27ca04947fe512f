// Thumbs: the small maps on a group of buttons, one in the `.thumb` of each.
// All are in one canvas: each canvas is a layer, and the browser minds them all on
// every frame.

function thumbsOn(group) {
  const surface = document.createElement("canvas");
  const one = document.createElement("canvas"); // a pixel for each patch
  let places = []; // of the buttons' thumbs, in pixels of the surface
  let drawn = "";
  let heats = [];
  surface.className = "thumbs";
  surface.setAttribute("aria-hidden", "true");

  // Once the buttons have their size: reading it any sooner would cost a layout.
  function measure() {
    const ratio = window.devicePixelRatio || 1;
    const rounded = (length) => Math.round(length * ratio);
    group.append(surface);
    places = [...group.querySelectorAll(".thumb")].map((thumb) => [
      rounded(thumb.offsetLeft), rounded(thumb.offsetTop),
      rounded(thumb.offsetWidth), rounded(thumb.offsetHeight),
    ]);
    const [width, height] = [0, 1].map((i) => Math.max(1, ...places.map((place) => place[i] + place[i + 2])));
    fit(surface, width, height);
    surface.style.width = `${width / ratio}px`;
    surface.style.height = `${height / ratio}px`;
    drawn = "";
    redraw();
  }

  // A heat, or nothing, for each button.
  function draw(next) {
    const how = `${state.contrast} ${state.scale}`;
    const same = drawn === how && heats.length === next.length && heats.every((heat, i) => heat === next[i]);
    if (same) return;
    [drawn, heats] = [how, next];
    const pen = surface.getContext("2d");
    pen.clearRect(0, 0, surface.width, surface.height);
    pen.imageSmoothingEnabled = false;
    places.forEach((place, i) => {
      if (!heats[i]) return;
      paintHeat(one, heats[i], inked().solid);
      pen.save();
      pen.beginPath();
      pen.roundRect(...place, place[2] / 9);
      pen.clip();
      pen.drawImage(one, ...place);
      pen.restore();
    });
  }

  new ResizeObserver(measure).observe(group);
  return { measure, draw };
}

function thumbNode() {
  const node = document.createElement("i");
  node.className = "thumb";
  return node;
}
