/**
 * Thumbs and a note on one completion. "Saved" appears only after the server has said so,
 * which it does once the rating is on stable storage.
 */
import { Problem, newKey, sendFeedback } from './api.js';
import { h, icon } from './dom.js';

/** What the page remembers of ratings, so that a result opened from the history shows its own.
 * @type {Map<string, {thumbs?: boolean, comment?: string}>} */
const known = new Map();

/**
 * @param {string} completionId
 * @param {string} domId unique in the page
 * @param {string} name what is rated: "Candidate 2"
 * @returns {HTMLElement}
 */
export function feedback(completionId, domId, name) {
  const memory = known.get(completionId) ?? {};
  known.set(completionId, memory);
  const status = h('span', { class: 'feedback-status', role: 'status', 'data-testid': 'feedback-status' });
  const thumb = (/** @type {boolean} */ value) => h('button', {
    type: 'button', class: 'round', 'aria-pressed': String(memory.thumbs === value), 'aria-label': `${name}: ${value ? 'good' : 'bad'} result`,
    title: value ? 'Good' : 'Bad', 'data-testid': value ? 'thumbs-up' : 'thumbs-down', on: { click: () => rate(value) },
  }, icon(value ? 'up' : 'down'));
  const up = thumb(true);
  const down = thumb(false);

  const note = /** @type {HTMLTextAreaElement} */ (h('textarea', { id: `${domId}-note`, rows: 2, maxlength: 2000, 'data-testid': 'note' }));
  note.value = memory.comment ?? '';
  const form = h('form', { class: 'note', hidden: true, id: `${domId}-form`, on: { submit: comment } },
    h('label', { for: note.id, text: 'What was good, or wrong?' }), note,
    h('button', { type: 'submit', class: 'secondary', text: 'Save note', 'data-testid': 'note-save' }));
  const open = h('button', { type: 'button', class: 'quiet', 'aria-expanded': 'false', 'aria-controls': form.id, text: 'Add a note', 'data-testid': 'note-open', on: { click: toggleNote } });

  const element = h('div', { class: 'feedback', 'data-testid': 'feedback', 'data-completion': completionId },
    h('div', { class: 'feedback-row' }, up, down, open, status), form);
  if (memory.thumbs !== undefined) say('saved', 'Saved');

  /**
   * @param {'saving'|'saved'|'failed'} state
   * @param {string} text
   * @param {(() => void)} [retry]
   */
  function say(state, text, retry) {
    status.dataset.state = state;
    status.replaceChildren(text, ...(retry ? [' ', h('button', { type: 'button', class: 'link', text: 'Try again', 'data-testid': 'feedback-retry', on: { click: retry } })] : []));
  }

  /** @param {boolean|undefined} value */
  function press(value) {
    up.setAttribute('aria-pressed', String(value === true));
    down.setAttribute('aria-pressed', String(value === false));
  }

  /** Clicks are sent one after another, so that the last click is the last word; only it may report. */
  let latest = 0;
  /** @type {Promise<void>} */
  let queue = Promise.resolve();

  /**
   * @param {string} metric
   * @param {boolean|string} value
   * @param {() => void} onSaved
   * @param {() => void} [onFailed]
   */
  function save(metric, value, onSaved, onFailed) {
    const turn = ++latest;
    const key = newKey(); // kept across retries: a repeated request is stored once
    const send = async () => {
      try {
        await sendFeedback({ completion_id: completionId, metric, value }, key);
        onSaved();
        if (turn === latest) say('saved', 'Saved');
      } catch (error) {
        if (turn !== latest) return;
        onFailed?.();
        say('failed', `Not saved: ${error instanceof Problem ? error.message : 'something went wrong in the page.'}`, attempt);
      }
    };
    const attempt = () => {
      say('saving', 'Saving…');
      queue = queue.then(send);
    };
    attempt();
  }

  /** @param {boolean} value */
  function rate(value) {
    if (/** @type {HTMLElement} */ (value ? up : down).getAttribute('aria-pressed') === 'true') return;
    press(value);
    save('thumbs', value, () => { memory.thumbs = value; }, () => press(memory.thumbs));
  }

  /** @param {Event} event */
  function comment(event) {
    event.preventDefault();
    const text = note.value.trim();
    if (text === '') return note.focus();
    save('comment', text, () => { memory.comment = text; if (!form.hidden) toggleNote(); });
  }

  function toggleNote() {
    form.hidden = !form.hidden;
    open.setAttribute('aria-expanded', String(!form.hidden));
    open.textContent = memory.comment && form.hidden ? 'Edit note' : 'Add a note';
    if (form.hidden) open.focus();
    else note.focus();
  }
  if (memory.comment) open.textContent = 'Edit note';
  return element;
}
