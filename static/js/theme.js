/** Light, dark, or as the system says. `theme-boot.js` applies the choice before the first paint. */

const KEY = 'lacuna.theme';
const ORDER = ['system', 'light', 'dark'];

function stored() {
  try {
    return localStorage.getItem(KEY) ?? 'system';
  } catch {
    return 'system';
  }
}

/** @param {string} theme */
function apply(theme) {
  if (theme === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // A private window may forbid storage: the choice then lasts as long as the page.
  }
}

/** @param {HTMLElement} button */
export function bindTheme(button) {
  let theme = ORDER.includes(stored()) ? stored() : 'system';
  const label = () => {
    button.dataset.theme = theme;
    button.setAttribute('aria-label', `Theme: ${theme}. Change`);
    button.title = `Theme: ${theme}`;
  };
  button.addEventListener('click', () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    apply(theme);
    label();
  });
  label();
}
