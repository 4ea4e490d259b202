/**
 * Before and after: one prompt, the same four seeds, two versions. What differs is what was learned.
 * Nothing of it is kept in the log, so comparing never becomes data to learn from.
 */
import { Problem, generate } from './api.js';
import { announce } from './announce.js';
import { h } from './dom.js';
import { IMAGE, TEXT } from './modes.js';
import { BASE } from './versions-data.js';

const SEEDS = 4;
/** At 0 all seeds would give the same text. */
const TEXT_TEMPERATURE = 0.7;

/** @typedef {'before'|'after'} Side */

export class Strip {
  /** @param {import('./modes.js').Server} server */
  constructor(server) {
    /** @type {AbortController|null} */
    this.abort = null;
    /** The person has picked versions: they no longer follow what is served. */
    this.picked = false;
    this.options = '';
    const modes = server.draws ? [IMAGE, TEXT] : [TEXT];
    this.kind = select('strip-kind', modes.map((mode) => [mode.kind, `${mode.label}s`]));
    this.sides = { before: select('strip-before', []), after: select('strip-after', []) };
    this.prompt = /** @type {HTMLInputElement} */ (h('input', { type: 'text', id: 'strip-prompt', autocomplete: 'off', maxlength: 500, 'data-testid': 'strip-prompt' }));
    this.seed = /** @type {HTMLInputElement} */ (h('input', { type: 'number', id: 'strip-seed', min: 0, max: 999999, value: 1, 'data-testid': 'strip-seed' }));
    this.examples = h('ul', { class: 'examples', 'aria-label': 'Examples for the comparison' });
    this.go = h('button', { type: 'submit', class: 'primary', text: 'Compare', 'data-testid': 'strip-go' });
    this.hint = h('p', { class: 'hint', 'data-testid': 'strip-hint' });
    this.problem = h('p', { class: 'field-error', role: 'alert', 'data-testid': 'strip-problem' });
    this.result = h('div', { class: 'strip', 'data-testid': 'strip' });
    const field = (/** @type {string} */ label, /** @type {HTMLElement} */ control, more = '') => h('div', { class: `strip-field ${more}` }, h('label', { for: control.id, text: label }), control);
    const form = h('form', { class: 'strip-form', novalidate: true },
      field('Prompt', this.prompt, 'is-prompt'), field('Kind', this.kind), field('Before', this.sides.before), field('After', this.sides.after), field('First seed', this.seed), this.go);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.run();
    });
    this.kind.addEventListener('change', () => this.fit());
    for (const side of Object.values(this.sides)) side.addEventListener('change', () => { this.picked = true; this.check(); });
    this.element = h('div', {}, form, this.examples, this.problem, this.hint, this.result);
    this.fit();
    this.offer([], BASE);
  }

  get mode() {
    return this.kind.value === 'image' ? IMAGE : TEXT;
  }

  /** Prompts and an empty strip of the chosen kind. */
  fit() {
    this.abort?.abort();
    const { examples } = this.mode;
    this.examples.replaceChildren(...examples.slice(0, 3).map((text) => h('li', {}, h('button', { type: 'button', class: 'chip', text, on: { click: () => { this.prompt.value = text; this.prompt.focus(); } } }))));
    this.prompt.value = examples[0];
    this.abort = null;
    this.check();
  }

  /**
   * @param {import('./versions-data.js').Version[]} versions oldest first
   * @param {string} active
   */
  offer(versions, active) {
    const ids = [BASE, ...versions.filter((version) => version.loaded).map((version) => version.id)];
    const options = JSON.stringify([ids, active]);
    if (options === this.options) return;
    this.options = options;
    const chosen = { before: this.sides.before.value, after: this.sides.after.value };
    for (const side of Object.values(this.sides)) side.replaceChildren(...ids.map((id) => h('option', { value: id, text: id === active ? `${id}, in service` : id })));
    const newest = active === BASE ? /** @type {string} */ (ids.at(-1)) : active;
    this.sides.before.value = this.picked && ids.includes(chosen.before) ? chosen.before : BASE;
    this.sides.after.value = this.picked && ids.includes(chosen.after) ? chosen.after : newest;
    this.check();
  }

  check() {
    const same = this.sides.before.value === this.sides.after.value;
    const only = this.sides.after.options.length < 2;
    this.go.setAttribute('aria-disabled', String(same));
    this.hint.textContent = only ? 'There is only the base yet. Once a version has been made, see here what it changed.'
      : same ? 'Choose two different versions.' : `Same prompt, same seeds, both made anew${this.mode === TEXT ? ` at temperature ${TEXT_TEMPERATURE}` : ''}; none of it is kept or learned from.`;
    if (!this.abort) this.blank();
  }

  async run() {
    if (this.go.getAttribute('aria-disabled') === 'true') return;
    this.abort?.abort();
    const abort = (this.abort = new AbortController());
    const { kind } = this.mode;
    this.problem.textContent = '';
    this.blank();
    this.result.setAttribute('aria-busy', 'true');
    announce('Comparing.');
    const body = { prompt: this.prompt.value.trim(), n: SEEDS, seed: Math.max(0, Math.floor(Number(this.seed.value) || 0)), store: false, ...(kind === 'text' ? { temperature: TEXT_TEMPERATURE } : {}) };
    try {
      await Promise.all((/** @type {Side[]} */ (['before', 'after'])).map(async (side) => {
        const result = await generate(kind, { ...body, adapter: this.sides[side].value }, { signal: abort.signal, onEvent: () => {} });
        if (!abort.signal.aborted) this.fill(side, result);
      }));
      announce('Both rows are there.');
    } catch (error) {
      if (abort.signal.aborted) return;
      abort.abort();
      if (!(error instanceof Problem)) console.error(error);
      this.problem.textContent = error instanceof Problem ? error.message : 'Something went wrong in the page.';
    } finally {
      if (this.abort === abort) {
        this.abort = null;
        this.result.removeAttribute('aria-busy');
      }
    }
  }

  /** Empty places of the size that the results will have. */
  blank() {
    const { kind } = this.mode;
    this.result.dataset.kind = kind;
    this.result.removeAttribute('aria-busy');
    this.result.replaceChildren(...(/** @type {Side[]} */ (['before', 'after'])).map((side) => {
      const places = Array.from({ length: SEEDS }, () => h('li', { class: kind === 'image' ? 'strip-frame' : 'strip-text' }));
      return h('div', { class: 'strip-row', 'data-side': side, 'data-testid': `strip-row-${side}` },
        h('h3', { class: 'strip-name' }, h('span', { class: 'hint', text: side === 'before' ? 'Before ' : 'After ' }), h('span', { 'data-testid': 'strip-version', text: this.sides[side].value })),
        h('ol', { class: 'strip-places', 'aria-label': `${side}: ${this.sides[side].value}` }, ...places));
    }));
  }

  /**
   * @param {Side} side
   * @param {any} result
   */
  fill(side, result) {
    const row = /** @type {HTMLElement} */ (this.result.querySelector(`[data-side=${side}]`));
    // What the server says made it, not what was asked for.
    /** @type {HTMLElement} */ (row.querySelector('[data-testid=strip-version]')).textContent = String(result.adapter ?? '');
    const places = [...row.querySelectorAll('li')];
    for (const [i, item] of (result.images ?? result.completions ?? []).entries()) {
      const place = places[i];
      if (!place) continue;
      place.title = `seed ${item.seed}`;
      if (item.b64) place.replaceChildren(h('img', { src: `data:image/${item.format ?? 'png'};base64,${item.b64}`, alt: `${this.prompt.value}, ${result.adapter}, seed ${item.seed}` }));
      else place.replaceChildren(item.text?.trim() || h('em', { text: 'empty' }));
    }
    this.compare();
  }

  /** Marks the places where the two differ. */
  compare() {
    const [before, after] = [...this.result.querySelectorAll('.strip-places')].map((list) => [...list.children]);
    const content = (/** @type {Element} */ place) => place.querySelector('img')?.src ?? place.textContent ?? '';
    for (const [i, place] of after.entries()) place.classList.toggle('is-changed', content(before[i]) !== '' && content(place) !== '' && content(before[i]) !== content(place));
  }
}

/**
 * @param {string} id
 * @param {[string, string][]} options
 */
function select(id, options) {
  return /** @type {HTMLSelectElement} */ (h('select', { id, 'data-testid': id }, ...options.map(([value, text]) => h('option', { value, text }))));
}
