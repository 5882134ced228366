// Owns the creation of elements. Data only ever becomes text or an attribute.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

// Creates an HTML element. Of the attributes, `on` holds event listeners and `data` the data attributes; null,
// undefined and false omit an attribute.
export function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// The same for SVG.
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "data") {
      Object.assign(node.dataset, value);
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  append(node, children);
  return node;
}

// Appends nodes, texts, numbers, or lists of them. Skips null, undefined and booleans.
export function append(node, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === true) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

// Replaces all children.
export function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

// Sets a text only if it differs, so as not to disturb screen readers and selections.
export function setText(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

let lastId = 0;

// An id that is unique in this document.
export function uniqueId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}
