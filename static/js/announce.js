/** One polite live region for the whole page. */

/** @param {string} message */
export function announce(message) {
  const region = document.getElementById('live');
  if (!region) return;
  // The same words twice are not a change, so a no-break space makes them one.
  region.textContent = region.textContent === message ? `${message}\u00a0` : message;
}
