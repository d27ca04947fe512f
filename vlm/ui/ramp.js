// Ramp: the colours of heat, wherever it is drawn.

// Dark violet to yellow: even steps in lightness, readable without colour vision.
const STOPS = [[38, 6, 70], [72, 48, 135], [38, 120, 142], [60, 188, 116], [253, 231, 37]];

// Red, green and blue of a level from 0 to 1.
function rampAt(level) {
  const at = level * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(at));
  return STOPS[low].map((c, k) => Math.round(c + (STOPS[low + 1][k] - c) * (at - low)));
}
