/**
 * One mode's half of the page: the prompt, the parameters and the life of a request.
 * What a run looks like is `results.js`.
 */
import { Problem, generate } from './api.js';
import { announce } from './announce.js';
import { copyFrom } from './clipboard.js';
import { legend } from './confidence.js';
import { curl } from './curl.js';
import { h, instantiate, refs } from './dom.js';
import { canvasSize } from './modes.js';
import { Pace } from './pace.js';
import { Params } from './params.js';
import { Results } from './results.js';
import { applyEvent, finishRun, newRun, progress } from './run.js';

/** @typedef {import('./run.js').Run} Run */

/** Larger than any canvas worth drawing cell by cell. */
const MOST_CELLS = 4096;

/** Of pairs, where the temperature stands at 0. */
const PAIR_TEMPERATURE = 0.7;

export class Workspace {
  /**
   * @param {import('./modes.js').Mode} mode
   * @param {HTMLElement} panel
   * @param {import('./modes.js').Server} server
   * @param {(run: Run) => void} onDone
   */
  constructor(mode, panel, server, onDone) {
    this.mode = mode;
    this.server = server;
    this.onDone = onDone;
    /** @type {AbortController|null} */
    this.abort = null;
    panel.replaceChildren(instantiate('workspace', mode.kind));
    this.el = refs(panel);
    this.results = new Results(mode.kind, this.el, server.grid, () => this.start());
    this.prompt = /** @type {HTMLTextAreaElement} */ (this.el.prompt);
    this.prompt.placeholder = mode.placeholder;
    const most = server.info.limits?.max_prompt_chars;
    if (Number.isFinite(most)) this.prompt.maxLength = most;
    this.params = new Params(mode, server.info, { main: this.el.params, more: this.el.more }, () => this.changed());
    this.bind();
    this.changed();
  }

  bind() {
    const { el } = this;
    for (const example of this.mode.examples) {
      el.examples.append(h('li', {}, h('button', { type: 'button', class: 'chip', text: example, 'data-testid': 'example', on: { click: () => this.use(example) } })));
    }
    el.legend.replaceWith(legend(this.mode.kind));
    if (/Mac|iP(hone|ad)/.test(navigator.userAgent)) el.kbd.textContent = '⌘ ↵';
    el.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.start();
    });
    el.root.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.start();
      } else if (event.key === 'Escape') this.stop();
    });
    el.stop.addEventListener('click', () => this.stop());
    el.compare.addEventListener('change', () => this.compare(/** @type {HTMLInputElement} */ (el.compare).checked));
    el.reset.addEventListener('click', () => {
      this.params.reset();
      announce('Parameters reset to the defaults.');
    });
    el.curl.addEventListener('click', () => copyFrom(el.curl, curl(this.mode.kind, this.results.run?.body ?? this.body(), location.origin), 'Command'));
    this.prompt.addEventListener('input', () => this.promptError(''));
  }

  /** @param {string} text an example */
  use(text) {
    this.prompt.value = text;
    this.promptError('');
    this.prompt.focus();
  }

  /** @returns {any} */
  body() {
    return { prompt: this.prompt.value.trim(), ...this.params.body(), ...this.mode.extras };
  }

  /** A parameter has changed: the switch for pairs follows their number. */
  changed() {
    if (!this.params) return;
    /** @type {HTMLInputElement} */ (this.el.compare).checked = this.params.values().n === 2;
    this.preview();
  }

  /**
   * Two candidates to choose between. Where nothing is drawn by chance they would be the same one twice.
   * @param {boolean} on
   */
  compare(on) {
    this.params.set('n', on ? 2 : 1);
    const { temperature } = this.params.values();
    if (on && temperature === 0) this.params.set('temperature', PAIR_TEMPERATURE);
    else if (!on && temperature === PAIR_TEMPERATURE) this.params.set('temperature', this.params.defaultNamed('temperature'));
    announce(on ? `Two candidates, at temperature ${this.params.values().temperature}.` : 'One candidate.');
  }

  /** Before the first run the canvas stands empty. */
  preview() {
    if (this.results.run || !this.params) return;
    const size = canvasSize(this.mode, this.params.values(), this.server);
    if (size > 0 && size <= MOST_CELLS) this.results.wait(this.mode.kind, size);
  }

  async start() {
    if (this.abort || !this.check()) return;
    const body = this.body();
    const before = this.results.run;
    const run = newRun(this.mode.kind, body, canvasSize(this.mode, this.params.values(), this.server));
    run.settings = this.params.values();
    const { signal } = (this.abort = new AbortController());
    this.results.open(run);
    this.busy(true);
    announce('Generating.');
    const pace = new Pace(body.steps, (name, data) => this.results.update(applyEvent(run, name, data)));
    try {
      const result = await generate(this.mode.kind, body, { signal, onEvent: (name, data) => pace.push(name, data) });
      await pace.settled(signal);
      finishRun(run, result);
      this.onDone(run);
      this.results.settle();
    } catch (error) {
      pace.flush();
      this.failed(run, before, error);
    } finally {
      this.abort = null;
      this.busy(false);
    }
  }

  /** Catches what needs no server to be seen; puts the focus where it is. */
  check() {
    this.params.clearErrors();
    this.results.problem(null);
    if (this.prompt.value.trim() === '') {
      this.promptError('Write a prompt first, or pick an example.');
      this.prompt.focus();
      return false;
    }
    const invalid = this.params.invalid();
    invalid?.focus();
    return invalid === null;
  }

  stop() {
    this.abort?.abort();
  }

  /**
   * Opens a run of the history with the prompt and the parameters that made it.
   * @param {Run} run
   * @returns {boolean} false while another is being made
   */
  reopen(run) {
    if (this.abort) {
      announce('Stop the generation first.');
      return false;
    }
    this.prompt.value = run.prompt;
    this.promptError('');
    this.params.restore(run.settings);
    this.results.problem(null);
    this.results.open(run);
    return true;
  }

  /**
   * @param {Run} run
   * @param {Run|null} before what was shown before; it comes back if this run has nothing to show
   * @param {unknown} error
   */
  failed(run, before, error) {
    const stopped = error instanceof DOMException && error.name === 'AbortError';
    run.state = stopped ? 'stopped' : 'failed';
    if (progress(run).filled > 0) this.results.settle();
    else if (before) this.results.open(before);
    else {
      this.results.run = null;
      this.preview();
    }
    if (stopped) return announce('Stopped.');
    if (!(error instanceof Problem)) console.error(error);
    this.explain(error instanceof Problem ? error : new Problem({ title: 'Something went wrong in the page', detail: String(error) }));
  }

  /**
   * Beside the field a problem is about where there is one, above the results otherwise.
   * @param {Problem} problem
   */
  explain(problem) {
    if (problem.field === 'prompt') {
      this.promptError(problem.message);
      return this.prompt.focus();
    }
    const control = problem.field ? this.params.showError(problem.field, problem.message) : null;
    if (control) control.focus();
    else this.results.problem(problem);
  }

  /** @param {boolean} on */
  busy(on) {
    this.el.root.classList.toggle('is-busy', on);
    document.documentElement.classList.toggle('is-generating', document.querySelector('.is-busy') !== null);
    this.el.generate.setAttribute('aria-disabled', String(on));
    const lost = document.activeElement === this.el.stop;
    this.el.stop.hidden = !on;
    if (lost && !on) this.el.generate.focus();
    this.el.cards.setAttribute('aria-busy', String(on));
  }

  /** @param {string} message */
  promptError(message) {
    this.el.promptError.textContent = message;
    if (message) this.prompt.setAttribute('aria-invalid', 'true');
    else this.prompt.removeAttribute('aria-invalid');
  }
}
