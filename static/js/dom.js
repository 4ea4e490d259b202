/**
 * Small DOM helpers. No `innerHTML` anywhere in the playground: every string
 * from the server reaches the page as a text node or an attribute.
 */

/**
 * Creates an element.
 * @param {string} tag
 * @param {Record<string, any>} [props] `class`, `text`, `on` (event → listener), anything else is an attribute;
 *   `null`, `undefined` and `false` leave the attribute out
 * @param {...(Node|string|null|undefined)} children
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'class') el.className = value;
    else if (name === 'text') el.textContent = value;
    else if (name === 'on') for (const [type, fn] of Object.entries(value)) el.addEventListener(type, fn);
    else el.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children) if (child !== null && child !== undefined) el.append(child);
  return el;
}

const SVG = 'http://www.w3.org/2000/svg';

/**
 * @param {string} tag
 * @param {Record<string, string|number>} [attrs]
 * @returns {SVGElement}
 */
export function svg(tag, attrs = {}) {
  const el = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attrs)) el.setAttribute(name, String(value));
  return el;
}

/**
 * A decorative icon from the sprite in index.html.
 * @param {string} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const el = svg('svg', { class: 'icon', 'aria-hidden': 'true', focusable: 'false' });
  el.append(svg('use', { href: `#i-${name}` }));
  return el;
}

/**
 * Clones a template; `$` at the start of an id (and of the attributes that point to ids) becomes `prefix`,
 * so that the same markup can stand in the page twice.
 * @param {string} templateId
 * @param {string} prefix
 * @returns {DocumentFragment}
 */
export function instantiate(templateId, prefix) {
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById(templateId));
  const fragment = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
  const pointers = ['id', 'for', 'aria-labelledby', 'aria-describedby', 'aria-controls'];
  for (const el of fragment.querySelectorAll('*')) {
    for (const name of pointers) {
      const value = el.getAttribute(name);
      if (value) el.setAttribute(name, value.replaceAll('$', prefix));
    }
  }
  return fragment;
}

/**
 * Every `data-ref` below `root`, by name.
 * @param {ParentNode} root
 * @returns {Record<string, HTMLElement>}
 */
export function refs(root) {
  /** @type {Record<string, HTMLElement>} */
  const found = {};
  for (const el of root.querySelectorAll('[data-ref]')) found[/** @type {HTMLElement} */ (el).dataset.ref ?? ''] = /** @type {HTMLElement} */ (el);
  return found;
}

/**
 * @param {number} n
 * @param {string} one
 * @param {string} [many]
 */
export function plural(n, one, many = `${one}s`) {
  return `${n.toLocaleString('en')} ${n === 1 ? one : many}`;
}
