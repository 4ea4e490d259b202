/** Tabs after the ARIA pattern: arrows move, Home and End jump, one tab in the tab order; the hash remembers,
 * unless it names another view of the page. */

/**
 * @param {HTMLElement} tablist
 * @param {(name: string) => void} [onSelect]
 * @returns {(name: string) => void} selects a tab by name
 */
export function tabs(tablist, onSelect) {
  const all = /** @type {HTMLElement[]} */ ([...tablist.querySelectorAll('[role=tab]')]);

  /**
   * @param {HTMLElement} tab
   * @param {boolean} focus
   * @param {boolean} [remember] a person chose it
   */
  function select(tab, focus, remember = true) {
    for (const other of all) {
      const on = other === tab;
      other.setAttribute('aria-selected', String(on));
      other.tabIndex = on ? 0 : -1;
      const panel = document.getElementById(other.getAttribute('aria-controls') ?? '');
      if (panel) panel.hidden = !on;
    }
    if (focus) tab.focus();
    const name = tab.dataset.tab ?? '';
    if (remember && location.hash !== `#${name}`) history.replaceState(null, '', `#${name}`);
    onSelect?.(name);
  }

  for (const [i, tab] of all.entries()) {
    tab.addEventListener('click', () => select(tab, false));
    tab.addEventListener('keydown', (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1 + all.length, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      select(all[to % all.length], true);
    });
  }
  const byName = (/** @type {string} */ name) => all.find((tab) => tab.dataset.tab === name);
  window.addEventListener('hashchange', () => {
    const tab = byName(location.hash.slice(1));
    if (tab) select(tab, false, false);
  });
  select(byName(location.hash.slice(1)) ?? all[0], false, false);
  return (name) => {
    const tab = byName(name);
    if (tab) select(tab, false);
  };
}
