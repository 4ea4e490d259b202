/**
 * The text canvas: a leaf of blanks that fill with tokens, and under it the reading,
 * the text so far with its gaps in square brackets.
 */
import { level } from './confidence.js';
import { h } from './dom.js';
import { describe, inspectable } from './inspect.js';
import { isRecent, isSpecial, isVisible, reading } from './run.js';

/** @typedef {import('./run.js').Candidate} Candidate */

/** Blanks of several widths, as words would leave them; they say nothing of what will come. */
const WIDTHS = [2, 1, 3, 1, 2, 4, 1, 3, 2, 1, 1, 4, 2, 3, 1, 2, 1, 4, 3];

export class TextCanvas {
  /**
   * @param {string} id unique in the page
   * @param {Candidate} candidate
   * @param {string} name what to call it: "Candidate 2"
   */
  constructor(id, candidate, name) {
    this.id = id;
    this.candidate = candidate;
    this.shown = 0;
    this.list = h('div', { class: 'leaf leaf-text', role: 'listbox', tabindex: '0', 'aria-label': `${name}: canvas of ${candidate.cells.length} positions`, 'aria-orientation': 'horizontal', 'data-testid': 'canvas' });
    this.readout = h('p', { class: 'readout', 'aria-hidden': 'true', 'data-testid': 'readout' });
    this.text = h('p', { class: 'reading', 'data-testid': 'reading' });
    this.inspector = inspectable(this.list, this.readout, {
      columns: () => this.columns(),
      describe: (position) => describe(this.candidate.cells[position], position, this.shown, 'text'),
    });
    this.element = h('div', { class: 'canvas' }, this.list, this.readout, this.text);
    this.draw(candidate.shown);
  }

  /** Cells differ in width: the number on the first line stands for all. */
  columns() {
    const cells = /** @type {HTMLElement[]} */ ([...this.list.children]);
    const next = cells.findIndex((c) => c.offsetTop > (cells[0]?.offsetTop ?? 0));
    return next > 0 ? next : cells.length;
  }

  /** @param {number} shown steps to show */
  draw(shown) {
    this.shown = shown;
    const { cells } = this.candidate;
    while (this.list.children.length < cells.length) {
      this.list.append(h('span', { role: 'option', 'aria-selected': 'false', id: `${this.id}-${this.list.children.length}`, 'data-width': WIDTHS[this.list.children.length % WIDTHS.length] }, h('span', { class: 'cell-text' })));
    }
    for (const [i, cell] of cells.entries()) this.drawCell(/** @type {HTMLElement} */ (this.list.children[i]), cell, i);
    this.inspector.refresh();
    this.drawReading();
  }

  /**
   * @param {HTMLElement} el
   * @param {import('./run.js').Cell} cell
   * @param {number} position
   */
  drawCell(el, cell, position) {
    const visible = isVisible(cell, this.shown);
    const unused = cell.step === null && this.candidate.id !== null;
    // Once known, a token holds its width while masked, so replay never moves the lines.
    const text = isSpecial(cell) ? (cell.step === null ? '' : '·') : cell.text.replaceAll('\n', '↵').trim() || '␣';
    const recent = isRecent(this.candidate, cell, this.shown);
    const key = `${visible}|${unused}|${text}|${cell.confidence}|${recent}`;
    if (el.dataset.key === key) return;
    el.dataset.key = key;
    el.className = `cell ${visible ? '' : unused ? 'is-unused' : 'is-masked'} ${visible && isSpecial(cell) ? 'is-special' : ''} ${recent ? 'is-recent' : ''}`;
    const tint = visible ? (cell.step === -1 ? 'given' : level(cell.confidence)) : null;
    if (tint === null) delete el.dataset.level;
    else el.dataset.level = String(tint);
    /** @type {HTMLElement} */ (el.firstChild).textContent = text;
    el.setAttribute('aria-label', describe(cell, position, this.shown, 'text'));
  }

  drawReading() {
    const { candidate } = this;
    if (candidate.text !== null && this.shown >= candidate.shown) {
      this.text.replaceChildren(candidate.text.trim() || h('em', { text: 'The answer is empty.' }));
      return;
    }
    const gap = () => h('span', { class: 'gap' }, h('span', { 'aria-hidden': 'true', text: '[…]' }), h('span', { class: 'sr-only', text: ' gap ' }));
    this.text.replaceChildren(...reading(candidate, this.shown).map((piece) => piece ?? gap()));
  }
}
