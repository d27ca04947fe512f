// Export: stands in for the page in a saved run. The run is in the file itself.

const run = JSON.parse(document.getElementById("run").textContent);
const element = document.getElementById("viewer");
const night = matchMedia("(prefers-color-scheme: dark)");
const shade = () => document.body.classList.toggle("dark", night.matches);
night.addEventListener("change", shade);
shade();

const server = {
  attention: async ({ keys }) =>
    Object.fromEntries(keys.filter((key) => key in run.maps).map((key) => [key, run.maps[key]])),
  export: async ({ kind }) => ({ [kind]: kind === "json" ? run : null }),
};
// What needs a model is hidden; see keep.css.
element.querySelector(".scope").dataset.offline = "";
view(element, () => {}, { value: run.view, group: "" }, server, null, () => {});
