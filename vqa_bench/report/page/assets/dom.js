// Elements made of data. Text goes in as text nodes only: nothing that comes from data is ever read as HTML.

/** An element with attributes (a null one is left out, a function listens to an event) and children. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

/** Fills a select with options [value, text] and groups {label, options}; one option alone cannot be chosen from. */
function fill(select, options) {
  const option = ([value, text]) => h("option", { value }, text);
  select.replaceChildren(
    ...options.map((each) => (Array.isArray(each) ? option(each) : h("optgroup", { label: each.label }, each.options.map(option)))),
  );
}

const byId = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en-US");
/** A share in percent, with a decimal where it is small and not nothing. */
function percent(share) {
  const digits = share >= 0.0005 && share < 0.0995 ? 1 : 0;
  return `${(100 * share).toFixed(digits)} %`;
}

const words = (name) => name.replaceAll("_", " ");
