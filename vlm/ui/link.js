// Link: viewers of one group show the same layer, head and tokens.
// A change that the reader makes in one is told to the others, which follow it and
// tell nothing back. What a stream or a fresh run changes is no act of the reader.

const LOOK = "paliscope:look";
const link = { seen: "" };

function lookNow() {
  const keys = state.follow ? null : state.chosen;
  return { layer: state.layer, head: state.head, keys };
}

function keepLook() {
  link.seen = JSON.stringify(lookNow());
}

function tellLook() {
  if (!props.group || JSON.stringify(lookNow()) === link.seen) return;
  keepLook();
  const detail = { group: props.group, from: element, ...lookNow() };
  document.dispatchEvent(new CustomEvent(LOOK, { detail }));
}

function takeLook({ layer, head, keys }) {
  state.layer = Math.min(layer, shape.layers - 1);
  state.head = Math.min(head, shape.heads - 1);
  state.preview = null;
  const own = keys && ownKeys(keys);
  if (own) {
    Object.assign(state, { chosen: own, object: -1, follow: false });
    fetchMaps(own).then(redraw);
  }
  keepLook();
  redraw();
}

// Those of the keys that there are here; where the answer is shorter, its last token.
function ownKeys(keys) {
  const here = allKeys();
  const own = keys.filter((key) => here.includes(key));
  const last = state.value.tokens.length - 1;
  return !own.length && last >= 0 && keys.some((key) => key[0] === "a") ? [`a${last}`] : own;
}

function joinGroup() {
  if (!props.group) return;
  root.dataset.compact = "true";
  document.addEventListener(LOOK, ({ detail }) => {
    if (detail.group === props.group && detail.from !== element) takeLook(detail);
  });
}
