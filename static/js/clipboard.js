/** Copying, also where `navigator.clipboard` is missing: it needs a secure context, a LAN address is none. */
import { announce } from './announce.js';

/**
 * @param {string} text
 * @returns {Promise<boolean>}
 */
async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement('textarea');
    area.value = text;
    area.className = 'sr-only';
    area.setAttribute('aria-hidden', 'true');
    document.body.append(area);
    const focused = /** @type {HTMLElement|null} */ (document.activeElement);
    area.select();
    const ok = document.execCommand('copy');
    area.remove();
    focused?.focus();
    return ok;
  }
}

/**
 * Copies, and says so on the button for a moment.
 * @param {HTMLElement} button
 * @param {string} text
 * @param {string} what
 */
export async function copyFrom(button, text, what) {
  const ok = await write(text);
  announce(ok ? `${what} copied.` : `The browser refused to copy the ${what.toLowerCase()}.`);
  button.dataset.state = ok ? 'copied' : 'failed';
  window.setTimeout(() => delete button.dataset.state, 1600);
}
