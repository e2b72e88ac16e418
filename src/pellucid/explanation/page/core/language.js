// The languages of the page, and the words of an exhibit in the one that is chosen.

export const language = { current: "en" };

// Fill the blanks of a text: {name}, and {n:row|rows}, which agrees with the number.
function fill(text, facts = {}) {
  return text.replace(/\{(\w+)(?::([^{}]*))?\}/g, (_, name, spec) => {
    const fact = facts[name];
    const shown = typeof fact === "number" && Number.isInteger(fact) ? fact.toLocaleString("en-US") : String(fact);
    if (!spec?.includes("|")) return shown;
    const [one, many] = spec.split("|");
    return `${shown} ${fact === 1 ? one : many}`;
  });
}

export const wordsOf = (texts) => (key, facts) => fill(texts[language.current][key] ?? key, facts);
