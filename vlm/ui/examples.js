// Examples: a button for each, named by its prompt.

const row = element.querySelector(".examples");
row.replaceChildren(...props.value.map(({ file, prompt, fails }, index) => {
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.title = prompt;
  image.src = file.url;
  image.alt = `Example: ${prompt}`;
  button.append(image);
  if (fails) {
    const badge = document.createElement("span");
    badge.className = "fails";
    badge.textContent = "fails";
    badge.title = "The model gets this one wrong";
    button.append(badge);
  }
  button.addEventListener("click", () => trigger("pick", { index }));
  return button;
}));
