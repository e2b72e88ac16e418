// Opens and folds the whole tree, and opens the layer that the URL names: #layer=encoder.rnn.

import { reachable } from "../core/dom.js";
import { readHash } from "../core/settings.js";

const layers = [...document.querySelectorAll("details.layer")];

for (const button of document.querySelectorAll("[data-tree]"))
  button.addEventListener("click", () => {
    for (const [index, layer] of layers.entries()) layer.open = button.dataset.tree === "open" || index === 0;
  });

function fromHash() {
  const path = readHash().get("layer");
  const found = path === null ? undefined : layers.find((layer) => layer.dataset.path === path);
  if (!found) return;
  for (let node = found; node; node = node.parentElement) if (node.matches("details")) node.open = true;
  found.scrollIntoView({ block: "start" });
}

// What has been unfolded may have to be scrolled.
document.addEventListener("toggle", (event) => reachable(event.target), true);
addEventListener("hashchange", fromHash);
fromHash();
