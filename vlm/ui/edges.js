// Edges: the line that a <loc> token means, and where else it might have been.

// The line that the chosen <loc> token means, and what else it might have been.
function drawLoc(pen, frame) {
  const edge = chosenEdge();
  if (!edge) return;
  const across = edge.axis === "y";
  const at = (bin) => (across ? frame.y + (bin / 1024) * frame.h : frame.x + (bin / 1024) * frame.w);
  pen.beginPath();
  if (across) pen.rect(frame.x, at(edge.bin) - 0.75, frame.w, 1.5);
  else pen.rect(at(edge.bin) - 0.75, frame.y, 1.5, frame.h);
  pen.fillStyle = "rgba(255, 255, 255, .9)";
  pen.fill();
  pen.fillStyle = hueOf(edge.object);
  for (const { bin, probability } of edge.candidates) {
    const length = 60 * probability;
    if (across) pen.fillRect(frame.x + frame.w - length, at(bin) - 2, length, 4);
    else pen.fillRect(at(bin) - 2, frame.y + frame.h - length, 4, length);
  }
}
