// Elements. Text only ever becomes a text node, so that nothing a user wrote is read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

// The children that are there, out of lists in lists.
const present = (children) => children.flat(Infinity).filter((child) => child !== false && (child ?? null) !== null);

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style" && typeof value === "object")
      for (const [key, part] of Object.entries(value)) node.style.setProperty(key, part);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...present(children));
  return node;
}

export const el = (name, attributes, ...children) => made(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => made(document.createElementNS(SVG, name), attributes, children);
export const math = (name, attributes, ...children) =>
  made(document.createElementNS(MATHML, name), attributes, children);

// Replace what a node holds; the element with the same data-key has the focus again afterwards, and boxes stay where they
// were scrolled to, unless what is chosen in them would be out of sight.
export function replace(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const boxes = () => [...node.querySelectorAll(".scroll")];
  const scrolled = boxes().map((box) => box.scrollLeft);
  node.replaceChildren(...present(children));
  boxes().forEach((box, index) => {
    box.scrollLeft = scrolled[index] ?? 0;
    const chosen = box.querySelector(".now, .active, .pinned")?.getBoundingClientRect();
    const seen = box.getBoundingClientRect();
    if (chosen && (chosen.left < seen.left || chosen.right > seen.right))
      box.scrollLeft += chosen.left - seen.left - (seen.width - chosen.width) / 2;
  });
  if (focused !== undefined) {
    const again = [...node.querySelectorAll("[data-key]")].find((child) => child.dataset.key === focused);
    again?.focus({ preventScroll: true });
  }
  return node;
}

// Let the keyboard reach what has to be scrolled and holds nothing that it reaches anyway.
export function reachable(root) {
  for (const box of root.querySelectorAll(".scroll, pre, dl.values dt, math[display]")) {
    if (box.scrollWidth > box.clientWidth && !box.querySelector('[tabindex="0"], a, button, input')) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
  }
}

export const range = (count) => Array.from({ length: Math.max(0, count) }, (_, index) => index);
