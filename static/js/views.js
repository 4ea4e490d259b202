/**
 * The views of the page, one shown at a time: `#training` is one, every other hash is the playground's.
 * Nothing is loaded again between them, so what was generated stays.
 */

/** @typedef {{title: string, section: HTMLElement, enter?: () => void, leave?: () => void}} View */

/**
 * @param {Record<string, View>} views by hash; `playground` is the one for any other
 * @param {HTMLElement} heading the page's first heading
 * @param {(name: string) => void} onShow
 */
export function views(views, heading, onShow) {
  /** @type {string|null} */
  let shown = null;
  function show() {
    const hash = location.hash.slice(1);
    const name = Object.hasOwn(views, hash) ? hash : 'playground';
    if (name === shown) return;
    for (const [other, { section }] of Object.entries(views)) section.hidden = other !== name;
    if (shown !== null) views[shown].leave?.();
    const arrived = shown !== null;
    shown = name;
    heading.textContent = views[name].title;
    document.title = `Lacuna · ${views[name].title.toLowerCase()}`;
    onShow(name);
    views[name].enter?.();
    if (arrived) window.scrollTo(0, 0);
  }
  window.addEventListener('hashchange', show);
  show();
}
