// Header: which model answers, and how far the next one is.

const NEWS_EVERY = 400; // milliseconds, while something is being loaded
const FAILED = "the other one could not be loaded";
const says = props.menu ? part("button.model") : part("p.model");
let shown = props.built; // the version that the page was built for
let asking = false;

function update(news) {
  const { name, facts, words, loading, error } = news;
  mark(says, "data-loading", Boolean(loading));
  write(says.querySelector("b"), name);
  mark(says, "data-failed", Boolean(error));
  const told = loading ? waiting(news) : error ? FAILED : facts;
  write(says.querySelector(".facts"), told);
  if (error) write(part(".say"), error);
  if (props.menu) drawLoading(loading, words, error);
  if (news.version !== shown && !loading) switchTo(news);
  if (loading && !asking) askAgain();
}

// The first model has no name beside it: it is the one that is being loaded.
function waiting({ name, loading, words }) {
  return name === loading ? words : `loading ${loading}: ${words}`;
}

function switchTo({ version, name }) {
  shown = version;
  write(part(".say"), `${name} answers now`);
  const scope = document.querySelector("#scope [data-phase]");
  trigger("switched", { idle: !scope || scope.dataset.phase === "idle" });
}

async function askAgain() {
  asking = true;
  await new Promise((later) => setTimeout(later, NEWS_EVERY));
  asking = false;
  await ask();
}

async function ask() {
  try {
    update(await server.news({}));
  } catch {
    askAgain(); // The server is busy or away for a moment.
  }
}

says.hidden = false;
part(props.menu ? "p.model" : "button.model").remove();
if (!props.menu) part(".menu").remove();
// Another visitor may have switched.
document.addEventListener("paliscope:done", ({ detail }) => {
  if (!props.value.names.includes(detail.model)) ask();
});
document.addEventListener("visibilitychange", () => {
  if (props.menu && !document.hidden) ask();
});
watch("value", () => update(JSON.parse(JSON.stringify(props.value))));
update(JSON.parse(JSON.stringify(props.value)));
