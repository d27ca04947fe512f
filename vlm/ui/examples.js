// Examples: a button for each, named by its prompt.

const row = element.querySelector(".examples");
row.replaceChildren(...props.value.map(({ file, prompt }, index) => {
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.title = prompt;
  image.src = file.url;
  image.alt = `Example: ${prompt}`;
  button.append(image);
  button.addEventListener("click", () => trigger("pick", { index }));
  return button;
}));
