// Opens and folds the whole tree, and opens the layer that the URL names: #layer=encoder.rnn.

const layers = [...document.querySelectorAll("details.layer")];

for (const button of document.querySelectorAll("[data-tree]"))
  button.addEventListener("click", () => {
    for (const [index, layer] of layers.entries()) layer.open = button.dataset.tree === "open" || index === 0;
  });

function fromHash() {
  const path = new URLSearchParams(location.hash.slice(1)).get("layer");
  const found = path === null ? undefined : layers.find((layer) => layer.dataset.path === path);
  if (!found) return;
  for (let node = found; node; node = node.parentElement) if (node.matches("details")) node.open = true;
  found.scrollIntoView({ block: "start" });
}

addEventListener("hashchange", fromHash);
fromHash();
