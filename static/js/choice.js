/**
 * The better of two: one click is a preference, which the trainer compares the two by. Thanks come only after the
 * server has said that it is stored; from then on the choice stands.
 */
import { Problem, newKey, sendPreference } from './api.js';
import { h } from './dom.js';

/** @typedef {import('./run.js').Run} Run */
/** @typedef {'left'|'right'|'tie'} Answer */

/** What was chosen, by the ids of the two, so that a run opened from the history shows it.
 * @type {Map<string, Answer>} */
const known = new Map();

/** Side by side they are left and right; one above the other, on a phone, first and second. */
const WORDS = /** @type {const} */ ({ left: ['Left is better', 'First is better'], tie: ['Tie', 'Tie'], right: ['Right is better', 'Second is better'] });

/**
 * @param {Run} run
 * @returns {boolean} there are two results, both kept, to choose between
 */
export function isPair(run) {
  return run.state === 'done' && run.candidates.length === 2 && run.candidates.every((c) => c.id !== null);
}

/** @param {Run} run */
function isSame(run) {
  const [a, b] = run.candidates;
  if (run.kind === 'text') return a.text !== null && a.text === b.text;
  return a.cells.length > 0 && a.cells.every((cell, i) => cell.token !== null && cell.token === b.cells[i]?.token);
}

/**
 * @param {Answer} answer
 * @param {string} left id
 * @param {string} right id
 */
export function preferenceOf(answer, left, right) {
  if (answer === 'tie') return { ranking: [[left, right]] };
  return answer === 'left' ? { chosen: left, rejected: right } : { chosen: right, rejected: left };
}

/**
 * @param {Run} run a pair
 * @param {HTMLElement[]} cards of the two
 * @param {string} domId unique in the page
 * @param {() => void} onNext asks for another pair
 * @returns {HTMLElement}
 */
export function choice(run, cards, domId, onNext) {
  const [left, right] = run.candidates.map((c) => /** @type {string} */ (c.id));
  const memory = `${left} ${right}`;
  const next = h('button', { type: 'button', class: 'quiet', text: 'Another pair', 'data-testid': 'next-pair', on: { click: onNext } });
  const title = h('h3', { class: 'choice-title', id: `${domId}-title`, text: 'Which is better?' });
  if (isSame(run)) {
    return h('div', { class: 'choice', 'data-testid': 'choice-same' },
      h('p', { class: 'hint', text: 'Both came out the same, so there is nothing to choose. A higher temperature makes them differ.' }), next);
  }
  const status = h('span', { class: 'feedback-status', role: 'status', 'data-testid': 'choice-status' });
  /** @type {Record<Answer, HTMLElement>} */
  const buttons = { left: button('left'), tie: button('tie'), right: button('right') };
  const element = h('div', { class: 'choice', role: 'group', 'aria-labelledby': title.id, 'data-testid': 'choice' },
    title, h('div', { class: 'choice-buttons' }, buttons.left, buttons.tie, buttons.right), h('div', { class: 'choice-after' }, status, next));
  let busy = false;
  const before = known.get(memory);
  if (before) settle(before);

  /** @param {Answer} answer */
  function button(answer) {
    const [wide, narrow] = WORDS[answer];
    return h('button', { type: 'button', class: 'secondary', 'aria-pressed': 'false', 'data-testid': `prefer-${answer}`, on: { click: () => choose(answer) } },
      h('span', { class: 'when-wide', text: wide }), h('span', { class: 'when-narrow', text: narrow }));
  }

  /** @param {Answer} answer */
  function choose(answer) {
    if (busy || known.has(memory)) return;
    mark(answer);
    send(answer, newKey());
  }

  /**
   * @param {Answer} answer
   * @param {string} key kept across retries: a repeated request is stored once
   */
  async function send(answer, key) {
    busy = true;
    say('saving', 'Saving…');
    try {
      await sendPreference(preferenceOf(answer, left, right), key);
      settle(answer);
    } catch (error) {
      mark(null);
      const why = error instanceof Problem ? error.message : 'something went wrong in the page.';
      say('failed', `Not saved: ${why}`, h('button', { type: 'button', class: 'link', text: 'Try again', 'data-testid': 'choice-retry', on: { click: () => { mark(answer); send(answer, key); } } }));
    } finally {
      busy = false;
    }
  }

  /** @param {Answer} answer stored by now */
  function settle(answer) {
    known.set(memory, answer);
    mark(answer);
    for (const one of Object.values(buttons)) one.setAttribute('aria-disabled', 'true');
    say('saved', 'Saved, thank you');
  }

  /** @param {Answer|null} answer */
  function mark(answer) {
    for (const [name, one] of Object.entries(buttons)) one.setAttribute('aria-pressed', String(name === answer));
    cards[0].classList.toggle('is-chosen', answer === 'left');
    cards[1].classList.toggle('is-chosen', answer === 'right');
  }

  /**
   * @param {'saving'|'saved'|'failed'} state
   * @param {string} text
   * @param {HTMLElement} [retry]
   */
  function say(state, text, retry) {
    status.dataset.state = state;
    status.replaceChildren(text, ...(retry ? [' ', retry] : []));
  }
  return element;
}
