/**
 * A question before something that others will notice, with room for the reason: the native dialog, which keeps the
 * focus inside and gives it back.
 */
import { Problem } from './api.js';
import { h } from './dom.js';

/**
 * @param {object} question
 * @param {string} question.title
 * @param {string} question.text what will happen
 * @param {string} question.action words on the button
 * @param {(reason: string) => Promise<void>} question.act the dialog stays, with what went wrong, until this resolves
 */
export function ask({ title, text, action, act }) {
  const reason = /** @type {HTMLInputElement} */ (h('input', { type: 'text', id: 'ask-reason', maxlength: 500, autocomplete: 'off', 'data-testid': 'ask-reason' }));
  const problem = h('p', { class: 'field-error', role: 'alert', 'data-testid': 'ask-problem' });
  const confirm = h('button', { type: 'submit', class: 'primary', text: action, 'data-testid': 'ask-confirm' });
  const form = h('form', {},
    h('h2', { id: 'ask-title', text: title }), h('p', { id: 'ask-text', text }),
    h('label', { for: reason.id }, 'Reason ', h('span', { class: 'hint', text: 'optional, kept in the audit trail' })), reason, problem,
    h('div', { class: 'ask-buttons' }, h('button', { type: 'button', class: 'secondary', text: 'Cancel', 'data-testid': 'ask-cancel', on: { click: () => dialog.close() } }), confirm));
  const dialog = /** @type {HTMLDialogElement} */ (h('dialog', { class: 'ask', 'aria-labelledby': 'ask-title', 'aria-describedby': 'ask-text', 'data-testid': 'ask' }, form));
  dialog.addEventListener('close', () => dialog.remove());
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (confirm.getAttribute('aria-disabled') === 'true') return;
    confirm.setAttribute('aria-disabled', 'true');
    problem.textContent = '';
    try {
      await act(reason.value.trim());
      dialog.close();
    } catch (error) {
      confirm.removeAttribute('aria-disabled');
      problem.textContent = error instanceof Problem ? error.message : 'Something went wrong in the page.';
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  reason.focus();
}
