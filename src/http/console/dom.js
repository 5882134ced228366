// Owns the making of elements. Everything on the page is made here, and data only ever becomes text or an attribute.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

// An HTML element. `on` in the attributes holds event listeners, `data` the data attributes; null, undefined and false
// leave an attribute out.
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

// Appends children: nodes, texts, numbers, lists of them; null, undefined and false are nothing.
export function append(node, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === true) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

// Puts these children in place of those that were there.
export function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

// Sets a text only where it differs, so that screen readers and selections are left in peace.
export function setText(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

let lastId = 0;

// An id that is used once in this document.
export function uniqueId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}
