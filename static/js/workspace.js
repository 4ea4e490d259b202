/**
 * One mode's half of the page: prompt, parameters, the run in progress and its results.
 * It wires the parts together; what they look like is theirs.
 */
import { Problem, generate } from './api.js';
import { announce } from './announce.js';
import { CandidateCard } from './candidate.js';
import { copyFrom } from './clipboard.js';
import { legend } from './confidence.js';
import { curl } from './curl.js';
import { h, instantiate, plural, refs } from './dom.js';
import { facts } from './facts.js';
import { canvasSize } from './modes.js';
import { Params } from './params.js';
import { Replay } from './replay.js';
import { applyEvent, finishRun, newRun, progress } from './run.js';

/** @typedef {import('./run.js').Run} Run */

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
    /** @type {Run|null} */
    this.run = null;
    /** @type {CandidateCard[]} */
    this.cards = [];
    /** @type {Replay|null} */
    this.replay = null;
    this.serial = 0;
    this.told = 0;
    panel.replaceChildren(instantiate('workspace', mode.kind));
    this.el = refs(panel);
    this.prompt = /** @type {HTMLTextAreaElement} */ (this.el.prompt);
    this.prompt.placeholder = mode.placeholder;
    const most = server.info.limits?.max_prompt_chars;
    if (Number.isFinite(most)) this.prompt.maxLength = most;
    this.params = new Params(mode, server.info, { main: this.el.params, more: this.el.more }, () => this.preview());
    this.bind();
    this.preview();
  }

  bind() {
    const { el } = this;
    for (const example of this.mode.examples) {
      el.examples.append(h('li', {}, h('button', { type: 'button', class: 'chip', text: example, 'data-testid': 'example', on: { click: () => this.use(example) } })));
    }
    el.legend.replaceWith(legend(this.mode.kind));
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
    el.reset.addEventListener('click', () => {
      this.params.reset();
      announce('Parameters reset to the defaults.');
    });
    el.curl.addEventListener('click', () => copyFrom(el.curl, curl(this.mode.kind, this.run?.body ?? this.body(), location.origin), 'Command'));
    this.prompt.addEventListener('input', () => this.promptError(''));
  }

  /** @param {string} text */
  use(text) {
    this.prompt.value = text;
    this.promptError('');
    this.prompt.focus();
  }

  /** @returns {any} */
  body() {
    return { prompt: this.prompt.value.trim(), ...this.params.body(), ...this.mode.extras };
  }

  /** Before the first run the canvas stands empty, as large as the parameters make it. */
  preview() {
    if (this.run || !this.params) return;
    const values = this.params.values();
    const size = canvasSize(this.mode, values, this.server);
    if (!(size > 0 && size <= 4096)) return;
    const run = newRun(this.mode.kind, { n: 1, steps: values.steps, prompt: '' }, size);
    this.cards = [new CandidateCard(`${this.mode.kind}-0`, run, run.candidates[0], this.server.grid)];
    this.el.cards.replaceChildren(this.cards[0].element);
    this.el.cards.dataset.count = '1';
    this.el.status.textContent = `${plural(size, 'gap')}, to be filled in any order`;
  }

  async start() {
    if (this.abort) return;
    this.params.clearErrors();
    this.problem(null);
    if (this.prompt.value.trim() === '') {
      this.promptError('Write a prompt first, or pick an example.');
      return this.prompt.focus();
    }
    const invalid = this.params.invalid();
    if (invalid) return invalid.focus();

    const body = this.body();
    const run = newRun(this.mode.kind, body, canvasSize(this.mode, this.params.values(), this.server));
    run.settings = this.params.values();
    this.abort = new AbortController();
    this.open(run);
    this.busy(true);
    announce('Generating.');
    try {
      const result = await generate(this.mode.kind, body, { signal: this.abort.signal, onEvent: (name, data) => this.event(run, name, data) });
      finishRun(run, result);
      this.finished(run);
    } catch (error) {
      this.failed(run, error);
    } finally {
      this.abort = null;
      this.busy(false);
    }
  }

  stop() {
    this.abort?.abort();
  }

  /**
   * Shows a run, new or from the history.
   * @param {Run} run
   */
  open(run) {
    this.replay?.pause();
    this.run = run;
    this.serial += 1;
    this.told = 0;
    this.cards = run.candidates.map((c) => new CandidateCard(`${this.mode.kind}-${this.serial}-${c.index}`, run, c, this.server.grid));
    this.el.cards.replaceChildren(...this.cards.map((card) => card.element));
    this.el.cards.dataset.count = String(run.candidates.length);
    this.el.facts.replaceChildren();
    this.el.replay.replaceChildren();
    this.replay = null;
    this.status(run);
    if (run.state === 'done') this.tools(run);
  }

  /**
   * Opens a run of the history with the prompt and the parameters that made it.
   * @param {Run} run
   */
  reopen(run) {
    if (this.abort) this.stop();
    this.prompt.value = run.prompt;
    this.params.restore(run.settings);
    this.params.clearErrors();
    this.problem(null);
    this.open(run);
  }

  /**
   * @param {Run} run
   * @param {string} name
   * @param {any} data
   */
  event(run, name, data) {
    const candidate = applyEvent(run, name, data);
    if (this.run !== run) return;
    if (candidate) this.cards[candidate.index].draw();
    this.status(run);
  }

  /** @param {Run} run */
  finished(run) {
    this.onDone(run);
    if (this.run !== run) return;
    for (const card of this.cards) {
      card.draw();
      card.settle();
    }
    this.tools(run);
    this.status(run);
    const first = run.candidates[0];
    announce(run.kind === 'text' && run.candidates.length === 1 ? `Done: ${first.text ?? ''}` : `Done: ${plural(run.candidates.length, run.kind === 'text' ? 'candidate' : 'image')}.`);
  }

  /** @param {Run} run */
  tools(run) {
    if (run.state === 'done') this.el.facts.replaceChildren(facts(run));
    this.replay = new Replay(`${this.mode.kind}-${this.serial}-replay`, run, (shown) => {
      for (const card of this.cards) card.draw(shown);
    });
    this.el.replay.replaceChildren(this.replay.element);
  }

  /**
   * @param {Run} run
   * @param {unknown} error
   */
  failed(run, error) {
    const stopped = error instanceof DOMException && error.name === 'AbortError';
    run.state = stopped ? 'stopped' : 'failed';
    if (this.run === run) {
      this.status(run);
      if (progress(run).filled > 0) this.tools(run);
    }
    if (stopped) return announce('Stopped.');
    if (!(error instanceof Problem)) console.error(error);
    this.problem(error instanceof Problem ? error : new Problem({ title: 'Something went wrong in the page', detail: String(error) }));
  }

  /** @param {Run} run */
  status(run) {
    const { filled, total, step, steps } = progress(run);
    const made = `${filled} of ${plural(total, 'position')} filled`;
    const words = {
      queued: run.queue ? `In the queue, place ${run.queue}` : 'Waiting for the first step',
      running: `Step ${step} of ${steps} · ${made}`,
      done: `Done in ${plural(step, 'step')}`,
      stopped: `Stopped after ${plural(step, 'step')} · ${made}`,
      failed: filled > 0 ? `Failed after ${plural(step, 'step')}` : 'Nothing was generated',
    };
    this.el.root.dataset.state = run.state;
    this.el.status.textContent = words[run.state];
    // Spoken in quarters: every step would drown the listener.
    const quarter = Math.floor((4 * step) / Math.max(1, steps));
    if (run.state === 'running' && quarter > this.told && quarter < 4) {
      this.told = quarter;
      announce(`Step ${step} of ${steps}, ${made}.`);
    }
  }

  /** @param {boolean} on */
  busy(on) {
    this.el.root.classList.toggle('is-busy', on);
    document.documentElement.classList.toggle('is-generating', document.querySelector('.is-busy') !== null);
    this.el.generate.setAttribute('aria-disabled', String(on));
    const had = document.activeElement === this.el.stop;
    this.el.stop.hidden = !on;
    if (had && !on) this.el.generate.focus();
    this.el.cards.setAttribute('aria-busy', String(on));
  }

  /** @param {string} message */
  promptError(message) {
    this.el.promptError.textContent = message;
    if (message) this.prompt.setAttribute('aria-invalid', 'true');
    else this.prompt.removeAttribute('aria-invalid');
  }

  /**
   * Beside the field it is about where there is one, above the results otherwise.
   * @param {Problem|null} problem
   */
  problem(problem) {
    this.el.problem.hidden = true;
    if (!problem) return;
    const retry = problem.retryAfter ? ` Try again in ${plural(problem.retryAfter, 'second')}.` : '';
    if (problem.field === 'prompt') {
      this.promptError(problem.message);
      return this.prompt.focus();
    }
    const control = problem.field ? this.params.showError(problem.field, problem.message) : null;
    if (control) return control.focus();
    this.el.problemTitle.textContent = problem.title;
    this.el.problemDetail.textContent = `${problem.detail}${retry}`.trim();
    this.el.problem.hidden = false;
  }
}
