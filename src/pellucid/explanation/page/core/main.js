// Starts the page: its data, language, colours and exhibits.

import { reachable } from "./dom.js";
import { Exhibit } from "./exhibit.js";
import { language } from "./language.js";
import { unpacked } from "./numbers.js";
import { readHash, writeHash } from "./settings.js";
import { watchSymbols } from "./symbols.js";

const page = JSON.parse(document.getElementById("page-data").textContent);
const root = document.documentElement;
const exhibits = page.exhibits.map(({ kind, data }, index) => {
  const texts = Object.fromEntries(page.languages.map((lang) => [lang, { ...page.words[lang].page, ...page.words[lang][kind] }]));
  return new Exhibit(document.getElementById(`exhibit-${index}`), kind, unpacked(data), texts);
});

let spoken = null;

function speak(lang) {
  if (!page.languages.includes(lang) || spoken === lang) return;
  spoken = language.current = lang;
  root.dataset.lang = lang;
  root.lang = lang;
  document.title = page.titles[lang];
  for (const button of document.querySelectorAll("[data-speak]"))
    button.setAttribute("aria-pressed", String(button.dataset.speak === lang));
  for (const exhibit of exhibits) exhibit.build();
}

function colour(theme) {
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  for (const button of document.querySelectorAll("[data-colour]"))
    button.setAttribute("aria-pressed", String(button.dataset.colour === theme));
}

function fromHash() {
  const found = readHash();
  speak(found.get("lang") ?? page.lang);
  const theme = found.get("theme");
  colour(["light", "dark"].includes(theme) ? theme : "auto");
}

for (const button of document.querySelectorAll("[data-speak]"))
  button.addEventListener("click", () => {
    speak(button.dataset.speak);
    writeHash({ lang: button.dataset.speak === page.lang ? null : button.dataset.speak });
  });
for (const button of document.querySelectorAll("[data-colour]"))
  button.addEventListener("click", () => {
    colour(button.dataset.colour);
    writeHash({ theme: button.dataset.colour === "auto" ? null : button.dataset.colour });
  });

// The hash holds what was chosen, so a link to a section must leave it alone.
for (const link of document.querySelectorAll("nav.contents a"))
  link.addEventListener("click", (event) => {
    const section = document.querySelector(link.getAttribute("href"));
    event.preventDefault();
    section.scrollIntoView();
    section.tabIndex = -1;
    section.focus({ preventScroll: true });
  });

// Readers without JavaScript have all worked steps open; where there is a picture to play with, they are folded.
if (exhibits.length) for (const details of document.querySelectorAll("details.worked")) details.open = false;

watchSymbols();
root.classList.add("scripted");
fromHash();
addEventListener("hashchange", fromHash);
// The keys of the only exhibit work without it having the focus, unless what has it takes keys itself.
if (exhibits.length === 1)
  addEventListener("keydown", (event) => {
    const taken = "a, button, summary, input, select, textarea, [tabindex='0'], [contenteditable]";
    if (!exhibits[0].root.contains(event.target) && !event.target.closest?.(taken)) exhibits[0].pressed(event);
  });
addEventListener("resize", () => reachable(document));
reachable(document);

// In a frame of a notebook: tell how high the page is.
if (window.parent !== window) {
  const tell = () => parent.postMessage({ pellucidHeight: document.documentElement.offsetHeight }, "*");
  new ResizeObserver(tell).observe(document.body);
  tell();
}
