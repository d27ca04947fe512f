// Layers: what the head reads after each layer, and where the row's attention lay.

const SHARES = ["image", "bos", "prompt", "answer"];

const LAYERS = {
  mapped: false,
  ready: () => true,
  key: () => "",
  told: () => ({}),

  draw(panel, found) {
    const row = triedToken() < 0 ? "" : `The row of ${rowBefore(triedToken())} led to it.`;
    write(panel.querySelector(".told-of"), row);
    const layers = Array.from({ length: shape.layers + 1 }, (_, i) => i);
    fillRows(panel.querySelector(".lens"), layers, lensRow, (line, _, i) => fillLens(line, found, i));
  },

  words({ probability, top }) {
    const first = top.findIndex((pieces) => pieces[0].text === top.at(-1)[0].text);
    return `${spaced(probability.at(-1))} after the last layer. What is most probable there leads from ${layerName(first - 1)} on.`;
  },
};

// What stood before the token, whose row led to it.
function rowBefore(token) {
  const before = token ? state.value.tokens[token - 1] : state.value.prompt.at(-1);
  return before ? `“${visible(before.text)}”` : "‹bos›";
}

function lensRow() {
  const row = rowOf("b", "i", "span", "code", "div.balance");
  row.lastChild.append(...SHARES.map(() => document.createElement("i")));
  row.lastChild.setAttribute("role", "img");
  return row;
}

function fillLens(row, found, i) {
  const [name, bar, share, pieces, balance] = row.children;
  const chance = found?.probability[i];
  write(name, layerName(i - 1));
  setBar(bar, chance ?? 0, [0, 1]);
  write(share, chance === undefined ? "" : spaced(chance));
  fillRows(pieces, found?.top[i] ?? [], () => pieceNode(), (node, piece) => {
    write(node.firstChild, visible(piece.text));
    write(node.lastChild, spaced(piece.probability));
  });
  const shares = i ? found?.balance[i - 1] : null;
  const words = shares ? shares.map((part, k) => `${SHARES[k]} ${spaced(part)}`).join(", ") : i ? "not known yet" : "no attention yet";
  if (balance.title === words) return;
  [...balance.children].forEach((part, k) => (part.style.width = percent(shares?.[k] ?? 0)));
  mark(balance, "aria-label", words);
  mark(balance, "title", words);
}

function pieceNode() {
  const node = document.createElement("span");
  node.append(...["b", "small"].map((name) => document.createElement(name)));
  return node;
}
