/** The site's pages and the views of this one. Another is one line here, shown once the server has it. */
import { h } from './dom.js';

/** @type {{label: string, href: string, view?: string, when?: (info: any) => boolean}[]} */
const PAGES = [
  { label: 'Playground', href: '/#playground', view: 'playground' },
  { label: 'Training', href: '/#training', view: 'training' },
  { label: 'API', href: '/docs' },
];

/**
 * @param {HTMLElement} list
 * @param {any} info
 * @returns {(view: string) => void} marks the view that is shown
 */
export function nav(list, info) {
  const links = PAGES.filter((page) => page.when?.(info) ?? true).map((page) => ({
    view: page.view, link: h('a', { href: page.href, text: page.label, 'data-testid': page.view ? `nav-${page.view}` : null }),
  }));
  list.replaceChildren(...links.map(({ link }) => h('li', {}, link)));
  return (view) => {
    for (const entry of links) {
      if (entry.view === view) entry.link.setAttribute('aria-current', 'page');
      else entry.link.removeAttribute('aria-current');
    }
  };
}
