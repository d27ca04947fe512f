// Nodes: find them, and write to them only what is not there yet.
// Writing the same again would cost a layout, on every frame.
// They are declared as functions, so that every script may use them while it loads.

function part(name) {
  return element.querySelector(name);
}

function write(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

function mark(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}
