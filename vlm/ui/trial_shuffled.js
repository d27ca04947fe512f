// Shuffled: every way's map beside that of a model that has learnt nothing.

const twins = thumbsOn(part(".twins"));
const shuffled = { found: null, heats: [] }; // two for each way, of what was found last

const SHUFFLED = {
  mapped: false,
  ready: () => true,
  key: () => "",
  told: () => ({}),

  draw(panel, found) {
    write(panel.querySelector(".told-of"), "Left the map, right that of shuffled weights. 1: the same order of patches, 0: none.");
    const rows = wayButtons.map((button, i) => found?.ways[i] ?? { title: button.title, alike: null });
    fillRows(panel.querySelector(".alike"), rows, twinRow, fillTwin);
    if (shuffled.found !== found) {
      const heats = (found?.ways ?? []).flatMap(({ name, own, shuffled }) => [own, shuffled].map((map) => map && heatFrom(name, map)));
      Object.assign(shuffled, { found, heats });
    }
    twins.draw(shuffled.heats);
  },

  words({ ways }) {
    return ways.map(({ title, alike }) => `${title} ${signed(alike)}`).join(", ");
  },
};

function twinRow() {
  const row = rowOf("b", "i", "span");
  row.prepend(thumbNode(), thumbNode());
  return row;
}

function fillTwin(row, { title, alike }) {
  const [, , name, bar, value] = row.children;
  write(name, title);
  setBar(bar, alike, [-1, 1]);
  write(value, signed(alike));
}
