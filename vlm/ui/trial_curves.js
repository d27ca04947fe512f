// Curves: the token's probability while patches of the picture go, and while they come.

const SVG = "http://www.w3.org/2000/svg";
const CHART = { width: 240, height: 150, left: 34, right: 8, top: 8, bottom: 22 };
const CHARTS = {
  deletion: { gone: "patches gone", better: "less is better" },
  insertion: { gone: "patches back", better: "more is better" },
};

const CURVES = {
  mapped: true,
  ready: () => Boolean(mapKept()),
  key: () => "",
  told: () => ({ heat: mapRows() }),

  draw(panel, found, over) {
    write(panel.querySelector(".told-of"), `Map: ${over ?? mapName()}`);
    for (const name of Object.keys(CHARTS)) drawChart(panel.querySelector(`[data-chart=${name}]`), name, found?.[name]);
  },

  words(found) {
    return Object.keys(CHARTS).map((name) => chartWords(name, found[name])).join("; ");
  },
};

function drawChart(figure, name, curves) {
  const svg = figure.querySelector("svg");
  if (!svg.firstChild) layOut(svg, CHARTS[name].gone);
  mark(svg, "aria-label", curves ? chartWords(name, curves) : "not known yet");
  for (const order of ["random", "heat"]) {
    mark(svg.querySelector(`.by-${order}`), "points", curves?.[order] ? pointsOf(curves[order]) : "");
  }
  write(figure.querySelector(".of-heat"), areaOf(curves?.heat));
  write(figure.querySelector(".of-random"), areaOf(curves?.random));
}

const areaOf = (curve) => (typeof curve?.area === "number" ? curve.area.toFixed(3) : "–");

function chartWords(name, { heat, random }) {
  return `${name}: area ${areaOf(heat)}, of a random order ${areaOf(random)}; ${CHARTS[name].better}`;
}

const across = (share) => CHART.left + share * (CHART.width - CHART.left - CHART.right);
const down = (chance) => CHART.top + (1 - chance) * (CHART.height - CHART.top - CHART.bottom);

function pointsOf({ shares, probabilities }) {
  return shares.map((share, i) => `${across(share).toFixed(1)},${down(probabilities[i]).toFixed(1)}`).join(" ");
}

// Both axes run from 0 to all, whatever the curves do.
function layOut(svg, gone) {
  svg.setAttribute("viewBox", `0 0 ${CHART.width} ${CHART.height}`);
  for (const part of [0, 0.5, 1]) {
    draws(svg, "line", { x1: across(0), x2: across(1), y1: down(part), y2: down(part) });
    labels(svg, `${100 * part} %`, { x: CHART.left - 5, y: down(part) + 3.5, "text-anchor": "end" });
  }
  labels(svg, "0", { x: across(0), y: CHART.height - 7 });
  labels(svg, gone, { x: across(0.5), y: CHART.height - 7, "text-anchor": "middle" });
  labels(svg, "all", { x: across(1), y: CHART.height - 7, "text-anchor": "end" });
  for (const order of ["random", "heat"]) draws(svg, "polyline", { class: `by-${order}` });
}

function draws(svg, name, places) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(places)) node.setAttribute(key, value);
  svg.append(node);
  return node;
}

function labels(svg, words, places) {
  draws(svg, "text", places).textContent = words;
}
