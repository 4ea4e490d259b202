/**
 * The image canvas: the picture, covered where its tokens are still masked, beside the map of its tokens.
 */
import { level } from './confidence.js';
import { h } from './dom.js';
import { describe, inspectable } from './inspect.js';
import { isRecent, isVisible } from './run.js';

/** @typedef {import('./run.js').Candidate} Candidate */

export class ImageCanvas {
  /**
   * @param {string} id unique in the page
   * @param {Candidate} candidate
   * @param {string} name
   * @param {[number, number]} grid rows, columns
   * @param {string} prompt the picture's description, for want of a better one
   */
  constructor(id, candidate, name, grid, prompt) {
    this.candidate = candidate;
    this.prompt = prompt;
    this.shown = 0;
    const count = candidate.cells.length;
    this.picture = /** @type {HTMLImageElement} */ (h('img', { class: 'picture', alt: '', hidden: true, 'data-testid': 'picture' }));
    this.veil = h('div', { class: 'veil', 'aria-hidden': 'true' });
    this.map = h('div', { class: 'leaf leaf-image', role: 'listbox', tabindex: '0', 'aria-label': `${name}: canvas of ${count} image tokens, ${grid[0]} rows of ${grid[1]}`, 'data-testid': 'canvas' });
    for (const el of [this.veil, this.map]) el.style.setProperty('--columns', String(grid[1]));
    for (let i = 0; i < count; i++) {
      this.veil.append(h('span', { class: 'veil-cell' }));
      this.map.append(h('span', { role: 'option', 'aria-selected': 'false', id: `${id}-${i}` }));
    }
    this.readout = h('p', { class: 'readout', 'aria-hidden': 'true', 'data-testid': 'readout' });
    this.inspector = inspectable(this.map, this.readout, {
      columns: () => grid[1],
      describe: (position) => describe(this.candidate.cells[position], position, this.shown, 'image'),
    });
    const frame = h('div', { class: 'frame' }, this.picture, this.veil);
    this.element = h('div', { class: 'canvas canvas-image' }, h('div', { class: 'plates' }, frame, this.map), this.readout);
    this.draw(candidate.shown);
  }

  /** @param {number} shown steps to show */
  draw(shown) {
    this.shown = shown;
    const painted = this.drawPicture();
    for (const [i, cell] of this.candidate.cells.slice(0, this.map.children.length).entries()) {
      const visible = isVisible(cell, shown);
      const recent = isRecent(this.candidate, cell, shown);
      const tint = visible ? (cell.step === -1 ? 'given' : level(cell.confidence)) : null;
      const open = visible && /** @type {number} */ (cell.step) <= painted;
      const key = `${visible}|${open}|${recent}|${cell.token}|${tint}`;
      const el = /** @type {HTMLElement} */ (this.map.children[i]);
      if (el.dataset.key === key) continue;
      el.dataset.key = key;
      el.className = `cell ${visible ? '' : 'is-masked'} ${recent ? 'is-recent' : ''}`;
      this.veil.children[i].className = `veil-cell ${open ? 'is-open' : visible ? 'is-known' : ''} ${recent ? 'is-recent' : ''}`;
      if (tint === null) delete el.dataset.level;
      else el.dataset.level = String(tint);
      el.textContent = visible ? String(cell.token) : '';
      el.setAttribute('aria-label', describe(cell, i, shown, 'image'));
    }
    this.inspector.refresh();
  }

  /**
   * Previews come every few steps only; tokens newer than the picture stay veiled.
   * @returns {number} the last step that the picture shows
   */
  drawPicture() {
    const { candidate, shown, picture } = this;
    const finished = candidate.picture !== null && shown >= candidate.shown;
    const preview = candidate.previews.findLast((p) => p.step < shown);
    // Without a preview for this early a step the finished picture does, its masked cells being covered.
    const whole = finished || (preview === undefined && shown > 0);
    const src = whole ? candidate.picture : (preview?.src ?? null);
    picture.hidden = src === null;
    if (src !== null && picture.getAttribute('src') !== src) picture.src = src;
    picture.alt = finished ? this.prompt : src === null ? '' : `${this.prompt}, unfinished`;
    if (src === null) return -2;
    return whole ? Infinity : /** @type {{step: number}} */ (preview).step;
  }
}
