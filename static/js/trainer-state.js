/** The head of the training view: what the trainer does, why it waits, how far it is, and its switches. */
import { h, plural } from './dom.js';
import { plain } from './versions-data.js';

/** @type {Record<string, string>} */
const STATES = { idle: 'Not learning', collecting: 'Collecting judgements', training: 'Training', gating: 'Measuring the candidate', paused: 'Paused' };

/** Where the page knows better words than the server's. @type {Record<string, string>} */
const REASONS = { training: 'Reading what was judged.', gating: 'Against the version in service, on prompts kept out of learning.', paused: 'No run starts until you resume.' };

/** @type {Record<string, string>} */
const OUTCOMES = {
  running: 'is running', promoted: 'went into service', candidate: 'awaits approval', rejected: 'was refused by the gate', nothing_to_learn: 'found nothing to learn', cancelled: 'was cancelled', failed: 'failed', abandoned: 'was abandoned',
};

export class TrainerState {
  /** @param {(what: 'trigger'|'pause'|'resume') => void} onSteer */
  constructor(onSteer) {
    this.name = h('span', { class: 'state-name', 'data-testid': 'training-state', text: '…' });
    this.reason = h('p', { class: 'state-reason', 'data-testid': 'training-reason' });
    this.bar = /** @type {HTMLProgressElement} */ (h('progress', { class: 'state-bar', max: 1, value: 0, 'aria-label': 'Progress', 'data-testid': 'training-progress' }));
    this.facts = h('dl', { class: 'facts', 'data-testid': 'training-facts' });
    const button = (/** @type {'trigger'|'pause'|'resume'} */ what, /** @type {string} */ text, main = false) =>
      h('button', { type: 'button', class: main ? 'primary' : 'secondary', text, 'data-testid': `training-${what}`, on: { click: () => onSteer(what) } });
    this.buttons = { trigger: button('trigger', 'Train now', true), pause: button('pause', 'Pause'), resume: button('resume', 'Resume') };
    this.element = h('section', { class: 'state', 'aria-labelledby': 'state-title' },
      h('div', { class: 'state-words' }, h('h2', { id: 'state-title', class: 'state-title' }, this.name), this.reason),
      h('div', { class: 'state-buttons' }, this.buttons.trigger, this.buttons.pause, this.buttons.resume), this.bar, this.facts);
  }

  /**
   * @param {any} status of `GET /training`
   * @param {string} [promotion] when a version that passed is served
   */
  show(status, promotion) {
    const { state, run } = status;
    const at = progress(status);
    this.element.dataset.state = state;
    for (const part of [this.bar, this.facts, this.buttons.trigger]) part.hidden = false;
    this.name.textContent = STATES[state] ?? state;
    this.reason.textContent = state === 'training' && run ? `Batch ${run.done} of ${run.total}` : (REASONS[state] ?? sentence(status.reason));
    if (at === null) this.bar.removeAttribute('value');
    else this.bar.value = at;
    this.facts.replaceChildren(...facts(status, promotion).map(([name, value]) => h('div', {}, h('dt', { text: name }), h('dd', {}, value))));
    const paused = state === 'paused';
    const focused = [this.buttons.pause, this.buttons.resume].some((button) => button === document.activeElement);
    this.buttons.pause.hidden = paused;
    this.buttons.resume.hidden = !paused;
    if (focused) (paused ? this.buttons.resume : this.buttons.pause).focus();
    this.buttons.trigger.setAttribute('aria-disabled', String(paused || ['training', 'gating'].includes(state)));
  }

  /** @param {string} reason learning is off */
  off(reason) {
    this.element.dataset.state = 'off';
    this.name.textContent = 'Learning is off';
    this.reason.textContent = reason;
    for (const part of [this.bar, this.facts, ...Object.values(this.buttons)]) part.hidden = true;
  }
}

/** @param {string} text */
const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}.`.replace(/\.\.$/, '.') : '');

/**
 * @param {any} status
 * @returns {number|null} 0–1; null while nobody can tell
 */
function progress({ state, run, waiting, min_samples: wanted }) {
  if (state === 'gating') return null;
  if (state === 'training') return run && run.total > 0 ? run.done / run.total : null;
  return state === 'collecting' ? Math.min(1, waiting / Math.max(1, wanted)) : 0;
}

/**
 * @param {any} status
 * @param {string} [promotion]
 * @returns {[string, Node|string][]}
 */
function facts({ waiting, subjects, current, routes, run, last_run: last }, promotion) {
  /** @type {[string, Node|string][]} */
  const items = [['In service', h('strong', { 'data-testid': 'current', text: current })]];
  if (routes?.canary) items.push(['Canary', `${routes.canary.version}, ${Math.round(routes.canary.share * 100)} %`]);
  if (promotion) items.push(['Promotion', promotion === 'auto' ? 'automatic' : 'when approved']);
  items.push(['Waiting', waiting > 0 ? `${plural(waiting, 'judgement')} of ${plural(subjects ?? 0, 'person', 'people')}` : 'no judgements']);
  if (run?.last) items.push(['Loss', plain(run.last.loss)], ['KL', plain(run.last.kl)], ['Clipped', `${plain(100 * run.last.clip_fraction)} %`]);
  if (last) {
    const { candidate, updates, reward } = last.metrics ?? {};
    const words = last.error ? `failed: ${last.error}` : (OUTCOMES[last.status] ?? last.status);
    items.push(['Last run', `${candidate ? `${candidate} ` : ''}${words}`]);
    if (Number.isFinite(reward)) items.push(['Mean reward', plain(reward)]);
    if (updates?.length) items.push(['Updates', String(updates.length)], ['Drift', `${plain(updates.at(-1).drift)} nats`]);
  }
  return items;
}
