// Pointing at a symbol lights it wherever it stands: in the formula, the table of shapes, the pictures.

let lit = null;

function light(symbol) {
  if (symbol === lit) return;
  lit = symbol;
  for (const node of document.querySelectorAll("[data-symbol]"))
    node.classList.toggle("lit", symbol !== null && node.dataset.symbol === symbol);
}

export function watchSymbols() {
  const symbolOf = (event) => event.target.closest?.("[data-symbol]")?.dataset.symbol ?? null;
  document.addEventListener("pointerover", (event) => light(symbolOf(event)));
  document.addEventListener("focusin", (event) => light(symbolOf(event)));
  document.addEventListener("keydown", (event) => event.key === "Escape" && light(null));
}
