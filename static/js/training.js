/**
 * The training view: asks the server every few seconds while it is shown, draws what has changed, and carries out
 * what a person decides.
 */
import { Problem, changeAdapter, getAdapter, getAdapters, getTraining, steerTraining } from './api.js';
import { announce } from './announce.js';
import { ask } from './ask.js';
import { Curve } from './curve.js';
import { h } from './dom.js';
import { Strip } from './strip.js';
import { TrainerState } from './trainer-state.js';
import * as parts from './training-parts.js';
import { routesOf, verdictOf, versionsOf } from './versions-data.js';

const PERIOD = 2000;
/** While the server does not answer. */
const PATIENCE = 8000;
/** Versions whose gate is asked for. */
const DETAILS = 40;

/** What follows from a decision. */
const QUESTIONS = {
  approve: (/** @type {string} */ id) => `From now on every request gets ${id}. Those under way keep the version they began with.`,
  reject: (/** @type {string} */ id) => `${id} is refused for good; nothing that is served changes.`,
  rollback: (/** @type {string} */ id) => `${id} is taken back and is not served again; requests get the version before it.`,
};

export class Training {
  /**
   * @param {HTMLElement} root
   * @param {import('./modes.js').Server} server
   * @param {(version: string) => void} onCurrent told what is in service
   */
  constructor(root, server, onCurrent) {
    this.onCurrent = onCurrent;
    this.learning = server.info.learning;
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    this.timer = undefined;
    this.running = false;
    /** What each part shows, as text, so that only a change draws it again. @type {Map<HTMLElement, string>} */
    this.drawn = new Map();
    /** Verdicts by version and status. @type {Map<string, any>} */
    this.verdicts = new Map();
    this.state = new TrainerState((what) => this.steer(what));
    this.curve = new Curve();
    this.strip = new Strip(server);
    this.problem = h('p', { class: 'problem', role: 'alert', hidden: true, 'data-testid': 'training-problem' });
    this.gate = h('div', {});
    this.lanes = h('div', {});
    this.versions = h('div', {});
    this.grid = h('div', { class: 'training-grid', hidden: true },
      part('Learning curve', this.curve.element, 'is-wide'), part('Last gate', this.gate), part('Lanes', this.lanes),
      part('Versions', this.versions, 'is-wide'), part('Before and after', this.strip.element, 'is-wide'));
    root.replaceChildren(this.problem, this.state.element, this.grid);
    document.addEventListener('visibilitychange', () => this.running && !document.hidden && this.poll());
  }

  start() {
    this.running = true;
    this.poll();
  }

  stop() {
    this.running = false;
    clearTimeout(this.timer);
  }

  async poll() {
    clearTimeout(this.timer);
    let wait = PERIOD;
    try {
      await this.refresh();
    } catch (error) {
      wait = PATIENCE;
      this.complain(error);
    }
    clearTimeout(this.timer);
    if (this.running && !document.hidden) this.timer = setTimeout(() => this.poll(), wait);
  }

  async refresh() {
    const [status, adapters] = await Promise.all([getTraining(), getAdapters()]);
    await this.learnVerdicts(adapters);
    this.problem.hidden = true;
    this.grid.hidden = false;
    this.onCurrent(status.current);
    if (status.state === 'idle' && this.learning?.on === false) this.state.off('Set training.enabled to true in the configuration, and the server learns from what is rated.');
    else this.state.show(status, this.learning?.promotion);
    const versions = versionsOf(adapters, (id) => this.verdicts.get(id)?.gate);
    const routes = routesOf(adapters);
    this.strip.offer(versions, routes.active);
    const { metrics } = status.last_run ?? {};
    const measured = versions.findLast((version) => version.gate);
    const [verdict, candidate] = metrics?.gate ? [verdictOf(metrics.gate), metrics.candidate] : [measured?.gate ?? null, measured?.id ?? null];
    this.redraw(this.curve.element, [versions, routes.active], () => this.curve.show(versions, routes.active));
    this.redraw(this.gate, [verdict, candidate], () => this.gate.replaceChildren(parts.gate(verdict, candidate)));
    this.redraw(this.lanes, status.lanes, () => this.lanes.replaceChildren(parts.lanes(status.lanes ?? {})));
    this.redraw(this.versions, [versions, routes], () => this.versions.replaceChildren(parts.versions(versions, routes, (...choice) => this.decide(...choice))));
  }

  /**
   * A version's gate never changes once it is there, so each is asked for once.
   * @param {any} adapters
   */
  async learnVerdicts({ adapters }) {
    const missing = (adapters ?? []).slice(0, DETAILS).filter((/** @type {any} */ one) => one.gate_passed !== null && !this.verdicts.has(one.version));
    await Promise.all(missing.map(async (/** @type {any} */ { version }) => this.verdicts.set(version, await getAdapter(version))));
  }

  /**
   * @param {HTMLElement} where
   * @param {unknown} data
   * @param {() => void} draw
   */
  redraw(where, data, draw) {
    const text = JSON.stringify(data);
    if (this.drawn.get(where) === text) return;
    this.drawn.set(where, text);
    const key = where.contains(document.activeElement) ? /** @type {HTMLElement} */ (document.activeElement).dataset.key : undefined;
    draw();
    if (key) /** @type {HTMLElement|undefined} */ ([...where.querySelectorAll('[data-key]')].find((el) => /** @type {HTMLElement} */ (el).dataset.key === key))?.focus();
  }

  /**
   * @param {unknown} error
   * @param {boolean} [steered] it answers a switch, and says nothing of the whole view
   */
  complain(error, steered = false) {
    if (!(error instanceof Problem)) console.error(error);
    const message = error instanceof Problem ? error.message : 'Something went wrong in the page.';
    // The model takes no adapters.
    if (error instanceof Problem && error.status === 409 && !steered) {
      this.grid.hidden = true;
      return this.state.off(message);
    }
    this.problem.hidden = false;
    if (this.problem.textContent !== message) this.problem.textContent = message;
  }

  /** @param {'trigger'|'pause'|'resume'} what */
  async steer(what) {
    if (this.state.buttons[what].getAttribute('aria-disabled') === 'true') return;
    try {
      await steerTraining(what);
      announce({ trigger: 'A run will start.', pause: 'Paused.', resume: 'Resumed.' }[what]);
    } catch (error) {
      return this.complain(error, true);
    }
    await this.poll();
  }

  /**
   * @param {parts.Decision} what
   * @param {string} id
   * @param {string} label
   */
  decide(what, id, label) {
    ask({
      title: `${label}: ${id}`, text: QUESTIONS[what](id), action: label,
      act: async (reason) => {
        await changeAdapter(what, id, reason);
        announce(`Done: ${label.toLowerCase()}, ${id}.`);
        await this.poll();
      },
    });
  }
}

/**
 * @param {string} title
 * @param {HTMLElement} content
 * @param {string} [more]
 */
function part(title, content, more = '') {
  const id = `part-${title.toLowerCase().replaceAll(' ', '-')}`;
  return h('section', { class: `part ${more}`, 'aria-labelledby': id }, h('h2', { id, text: title }), content);
}
