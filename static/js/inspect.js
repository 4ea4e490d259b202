/**
 * Looking at single cells: pointer or arrow keys choose one, a line under the canvas tells its story.
 * The canvas is a listbox to assistive technology, each position an option.
 */
import { percent } from './confidence.js';
import { isSpecial, isVisible } from './run.js';

/** @typedef {import('./run.js').Cell} Cell */

/**
 * @param {Cell} cell
 * @param {number} position
 * @param {number} shown
 * @param {'text'|'image'} kind
 */
export function describe(cell, position, shown, kind) {
  const where = `Position ${position + 1}`;
  if (!isVisible(cell, shown)) return `${where}: gap`;
  const what = kind === 'image' ? `code ${cell.token}` : isSpecial(cell) ? 'end of text' : `“${cell.text.replaceAll('\n', '↵')}”`;
  const when = cell.step === -1 ? 'given' : `step ${/** @type {number} */ (cell.step) + 1}, ${percent(cell.confidence)}`;
  return `${where}: ${what}, ${when}`;
}

/**
 * @param {HTMLElement} list the listbox; its children are the options
 * @param {HTMLElement} readout
 * @param {{columns: () => number, describe: (position: number) => string}} options
 * @returns {{refresh: () => void}}
 */
export function inspectable(list, readout, { columns, describe: tell }) {
  let active = -1;

  /** @param {number} position */
  function choose(position) {
    list.children[active]?.classList.remove('is-active');
    list.children[active]?.setAttribute('aria-selected', 'false');
    active = position;
    const option = list.children[active];
    if (!option) {
      list.removeAttribute('aria-activedescendant');
      readout.textContent = '';
      return;
    }
    option.classList.add('is-active');
    option.setAttribute('aria-selected', 'true');
    list.setAttribute('aria-activedescendant', option.id);
    refresh();
  }

  function refresh() {
    const option = list.children[active];
    if (!option) return;
    const story = tell(active);
    option.setAttribute('aria-label', story);
    readout.textContent = story;
  }

  list.addEventListener('keydown', (event) => {
    const last = list.children.length - 1;
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -Infinity, End: Infinity };
    if (event.key === 'Escape' && active >= 0) choose(-1);
    else if (event.key in moves && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const step = moves[/** @type {keyof typeof moves} */ (event.key)];
      const next = active < 0 ? 0 : active + step;
      choose(Math.abs(step) === 1 || Math.abs(step) === Infinity || active < 0 ? Math.min(last, Math.max(0, next)) : next < 0 || next > last ? active : next);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  list.addEventListener('focus', () => active < 0 && choose(0));
  list.addEventListener('blur', () => choose(-1));
  list.addEventListener('pointerover', (event) => {
    const option = /** @type {HTMLElement} */ (event.target).closest('[role=option]');
    if (option) choose(Array.prototype.indexOf.call(list.children, option));
  });
  list.addEventListener('pointerleave', () => document.activeElement !== list && choose(-1));
  return { refresh };
}
