// Hint: help with the prompt, a button that repairs it, and its language.

const part = (name) => element.querySelector(name);
const [words, repair, label, select] = ["p", ".repair", ".language", "select"].map(part);

select.replaceChildren(...props.languages.map(([code, name]) => {
  const option = document.createElement("option");
  option.value = code;
  option.textContent = name;
  return option;
}));

function update() {
  const told = props.value;
  words.textContent = told.words;
  words.classList.toggle("amiss", told.amiss);
  repair.hidden = told.repair === null;
  repair.textContent = told.repair;
  repair.setAttribute("aria-label", `Write instead: ${told.repair}`);
  repair.title = `Write instead: ${told.repair}`;
  label.hidden = told.language === null;
  select.value = told.language;
}

repair.addEventListener("click", () => trigger("repair", {}));
select.addEventListener("change", () => trigger("language", { code: select.value }));
watch("value", update);
update();
