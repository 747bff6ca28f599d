// The page's elements, by id and made anew.

export const $ = (id) => document.getElementById(id);

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "disabled" || name === "hidden") node[name] = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const el = (tag, attributes = {}, ...children) => make(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

let fading;

// One line at the foot of the page, for a while.
export function toast(text, calm = false) {
  const line = $("toast");
  line.textContent = text;
  line.hidden = false;
  line.classList.toggle("calm", calm);
  clearTimeout(fading);
  fading = setTimeout(() => (line.hidden = true), calm ? 3000 : 8000);
}

export const amount = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
