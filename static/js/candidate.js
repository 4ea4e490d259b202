/** One candidate: its canvas, its seed, and, once done, its ratings. */
import { imageUrl } from './api.js';
import { ImageCanvas } from './canvas-image.js';
import { TextCanvas } from './canvas-text.js';
import { copyFrom } from './clipboard.js';
import { h, icon } from './dom.js';
import { feedback } from './feedback.js';

/** @typedef {import('./run.js').Candidate} Data */

const FINISH = { length: 'canvas full', deadline: 'out of time', cancelled: 'cancelled' };

export class CandidateCard {
  /**
   * @param {string} id unique in the page
   * @param {import('./run.js').Run} run
   * @param {Data} data
   * @param {[number, number]} grid
   */
  constructor(id, run, data, grid) {
    this.id = id;
    this.run = run;
    this.data = data;
    this.name = run.candidates.length > 1 ? `Candidate ${data.index + 1}` : 'Result';
    this.canvas = run.kind === 'text' ? new TextCanvas(`${id}-c`, data, this.name) : new ImageCanvas(`${id}-c`, data, this.name, grid, run.prompt);
    this.foot = h('div', { class: 'card-foot' });
    this.element = h('article', { class: 'card', 'aria-label': this.name, 'data-testid': 'candidate' },
      run.candidates.length > 1 ? h('h3', { class: 'card-title', text: String(data.index + 1), 'aria-label': this.name }) : null, this.canvas.element, this.foot);
    if (data.id !== null) this.settle();
  }

  /** @param {number} [shown] */
  draw(shown) {
    this.canvas.draw(Math.min(shown ?? this.data.shown, this.data.shown));
  }

  /** Adds what only a finished candidate has. */
  settle() {
    const { data, run } = this;
    if (data.id === null) return;
    this.element.dataset.completion = data.id;
    const finish = FINISH[/** @type {keyof typeof FINISH} */ (data.finish ?? '')];
    this.foot.replaceChildren(
      feedback(data.id, this.id, this.name),
      h('div', { class: 'card-tools' },
        run.result?.adapter ? h('span', { class: 'version', title: 'The adapter version that made it', 'aria-label': `${this.name}: made by ${run.result.adapter}`, 'data-testid': 'adapter', text: run.result.adapter }) : null,
        finish ? h('span', { class: 'finish', text: finish }) : null,
        data.seed !== null ? this.copy('seed', `Seed ${data.seed}`, String(data.seed), 'Seed') : null,
        run.kind === 'text' ? this.copy('text', 'Copy text', data.text ?? '', 'Text') : null,
        run.kind === 'image' ? h('a', { class: 'quiet', href: imageUrl(data.id), download: `${data.id}.png`, 'aria-label': `${this.name}: save image`, 'data-testid': 'save-image' }, icon('save'), 'Save') : null,
      ),
    );
  }

  /**
   * @param {string} what
   * @param {string} label
   * @param {string} value
   * @param {string} spoken
   */
  copy(what, label, value, spoken) {
    const button = h('button', { type: 'button', class: 'quiet copy', title: `Copy the ${what}`, 'aria-label': `${this.name}: copy ${what === 'seed' ? `seed ${value}` : what}`, 'data-testid': `copy-${what}` }, icon('copy'), h('span', { text: label }));
    button.addEventListener('click', () => copyFrom(button, value, spoken));
    return button;
  }
}
