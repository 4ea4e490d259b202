/**
 * The parameters panel, drawn from a mode's list of fields: values, defaults from `/info`, errors beside their field.
 */
import { h } from './dom.js';

/** @typedef {import('./modes.js').Field} Field */

/**
 * @param {any} object
 * @param {string} path
 */
function at(object, path) {
  return path.split('.').reduce((o, key) => o?.[key], object);
}

/** Drawn seeds stay this small so that a person can read one out. */
const SEEDS = 999_999;

export class Params {
  /**
   * @param {import('./modes.js').Mode} mode
   * @param {any} info
   * @param {{main: HTMLElement, more: HTMLElement}} where
   * @param {() => void} onChange
   */
  constructor(mode, info, where, onChange) {
    this.mode = mode;
    this.onChange = onChange;
    this.limits = info?.limits ?? {};
    this.defaults = info?.defaults?.[mode.kind] ?? {};
    /** The person has set the steps: they no longer follow the length. */
    this.ownSteps = false;
    /** @type {Map<string, {field: Field, input: HTMLInputElement|HTMLSelectElement, slider: HTMLInputElement|null, error: HTMLElement, row: HTMLElement}>} */
    this.rows = new Map();
    for (const field of mode.fields) (field.more ? where.more : where.main).append(this.row(field));
    this.reset();
  }

  /** @param {Field} field */
  maxOf(field) {
    const limit = field.maxLimit ? this.limits[field.maxLimit] : undefined;
    return Number.isFinite(limit) ? Math.min(field.max ?? limit, limit) : field.max;
  }

  /** @param {Field} field */
  row(field) {
    const id = `${this.mode.kind}-param-${field.key.replace('.', '-')}`;
    const hint = field.hint ? h('span', { class: 'hint', id: `${id}-hint`, text: field.hint }) : null;
    const error = h('span', { class: 'field-error', id: `${id}-error`, 'data-testid': `error-${field.key}` });
    const about = { id, 'aria-describedby': [hint && `${id}-hint`, `${id}-error`].filter(Boolean).join(' '), 'data-testid': `param-${field.key}` };
    /** @type {HTMLInputElement|HTMLSelectElement} */
    let input;
    /** @type {HTMLInputElement|null} */
    let slider = null;
    if (field.kind === 'select') {
      input = /** @type {HTMLSelectElement} */ (h('select', about, ...(field.options ?? []).map(([value, label]) => h('option', { value, text: label }))));
    } else if (field.kind === 'seed') {
      input = /** @type {HTMLInputElement} */ (h('input', { ...about, type: 'text', inputmode: 'numeric', pattern: '[0-9]*', maxlength: 15, placeholder: 'random', autocomplete: 'off' }));
    } else {
      const range = { min: field.min, max: this.maxOf(field), step: field.step };
      input = /** @type {HTMLInputElement} */ (h('input', { ...about, ...range, min: field.least ?? field.min, type: 'number', inputmode: 'decimal', required: true }));
      // The number is the control; the slider is the same thing for pointers, so it stays out of the tab order.
      slider = /** @type {HTMLInputElement} */ (h('input', { ...range, type: 'range', tabindex: -1, 'aria-hidden': 'true' }));
      slider.addEventListener('input', () => this.set(field.key, slider?.value ?? ''));
    }
    for (const control of [input, slider]) if (field.key === 'steps') control?.addEventListener('input', () => { this.ownSteps = true; });
    input.addEventListener('input', () => this.set(field.key, input.value, true));
    const row = h('div', { class: `param param-${field.kind}` }, h('label', { for: id, text: field.label }), input, slider, hint, error);
    this.rows.set(field.key, { field, input, slider, error, row });
    return row;
  }

  /**
   * @param {string} key
   * @param {string|number} value
   * @param {boolean} [typed] leave the text as the person is typing it
   */
  set(key, value, typed = false) {
    const row = this.rows.get(key);
    if (!row) return;
    if (!typed) row.input.value = String(value);
    if (row.slider) row.slider.value = String(value);
    this.showError(key, '');
    if (key === 'max_tokens') this.fitLength();
    this.refresh();
    this.onChange();
  }

  /** What follows the length of the canvas: a block is no longer, and the steps keep the server's pace. */
  fitLength() {
    const length = Number(this.rows.get('max_tokens')?.input.value);
    const block = Number(this.rows.get('block_length')?.input.value);
    if (length >= 4 && block > length) this.set('block_length', length);
    const steps = this.stepsFor(length);
    if (!this.ownSteps && steps) this.set('steps', steps);
  }

  /**
   * @param {number} length
   * @returns {number|undefined} the server's default steps, where they depend on the length
   */
  stepsFor(length) {
    const pace = this.defaults.tokens_per_step;
    return pace > 0 && length > 0 ? Math.max(1, Math.floor(length / pace)) : undefined;
  }

  /**
   * The server's default, under its own path or its last name (`sampler.threshold`, `threshold`).
   * @param {Field} field
   */
  defaultOf(field) {
    const found = at(this.defaults, field.key) ?? this.defaults[field.key.split('.').at(-1) ?? ''];
    if (found !== undefined && found !== null) return found;
    return (field.key === 'steps' ? this.stepsFor(this.defaults.max_tokens) : undefined) ?? field.fallback;
  }

  /** @param {string} key */
  defaultNamed(key) {
    const row = this.rows.get(key);
    return row ? this.defaultOf(row.field) : '';
  }

  /** Hides what does not apply. */
  refresh() {
    for (const { field, row } of this.rows.values()) {
      row.hidden = field.when !== undefined && this.rows.get(field.when[0])?.input.value !== field.when[1];
    }
  }

  /** Back to the server's defaults. */
  reset() {
    this.ownSteps = false;
    for (const { field } of this.rows.values()) this.set(field.key, field.kind === 'seed' ? '' : this.defaultOf(field));
  }

  /** @returns {Record<string, any>} every value as it stands, by key */
  values() {
    /** @type {Record<string, any>} */
    const values = {};
    for (const { field, input } of this.rows.values()) values[field.key] = field.kind === 'range' ? Number(input.value) : input.value;
    return values;
  }

  /** @param {Record<string, any>} values */
  restore(values) {
    this.ownSteps = true;
    for (const [key, value] of Object.entries(values)) this.set(key, value);
  }

  /**
   * Checks what the browser can; the first control at fault, if any.
   * @returns {HTMLElement|null}
   */
  invalid() {
    let first = null;
    for (const [key, { input, row }] of this.rows) {
      const { validity } = input;
      // A number between two notches of the slider is fine; whether it makes sense, the server knows.
      if (row.hidden || validity.valid || (validity.stepMismatch && !validity.rangeOverflow && !validity.rangeUnderflow)) continue;
      this.showError(key, validity.patternMismatch ? 'A whole number, or nothing.' : input.validationMessage);
      first ??= input;
    }
    return first;
  }

  /**
   * The parameters of a request. An empty seed is drawn here and not by the server,
   * so that the request, and the curl command made of it, can be repeated.
   */
  body() {
    /** @type {Record<string, any>} */
    const body = {};
    for (const { field, input, row } of this.rows.values()) {
      if (row.hidden) continue;
      let value = field.kind === 'select' ? input.value : Number(input.value);
      if (field.kind === 'seed' && input.value === '') value = 1 + Math.floor(Math.random() * SEEDS);
      if (value === field.omit) continue;
      const [group, name] = field.key.split('.');
      if (name) (body[group] ??= {})[name] = value;
      else body[group] = value;
    }
    return body;
  }

  /**
   * @param {string} key
   * @param {string} message empty clears it
   * @returns {HTMLElement|null} the control, or null when the panel has no such field
   */
  showError(key, message) {
    const row = this.rows.get(key) ?? this.rows.get(`${key}.kind`);
    if (!row) return null;
    row.error.textContent = message;
    if (message) row.input.setAttribute('aria-invalid', 'true');
    else row.input.removeAttribute('aria-invalid');
    const fold = row.row.closest('details');
    if (message) for (let f = fold; f; f = f.parentElement?.closest('details') ?? null) f.open = true;
    return row.input;
  }

  clearErrors() {
    for (const key of this.rows.keys()) this.showError(key, '');
  }
}
