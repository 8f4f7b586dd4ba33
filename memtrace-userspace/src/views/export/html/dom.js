// Making elements. Everything foreign goes in as text; nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes and children. Attributes whose value is a function are listeners;
 * null, undefined and false leave an attribute or a child out.
 */
function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function drawing(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

/** A number that is shown short, with all digits when somebody points at it. */
function quantity(value, isBytes) {
  const short = isBytes ? bytes(value) : count(value);
  const exact = isBytes ? `${exactly(value)} bytes` : exactly(value);
  return element("span", { class: "number", title: exact, "data-value": value }, short);
}

