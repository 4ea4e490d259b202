/** The site's pages. A new page (training, comparing adapters) is one line here, shown once the server has it. */
import { h } from './dom.js';

/** @type {{label: string, href: string, when?: (info: any) => boolean}[]} */
const PAGES = [
  { label: 'Playground', href: '/' },
  { label: 'API', href: '/docs' },
];

/**
 * @param {HTMLElement} list
 * @param {any} info
 */
export function nav(list, info) {
  list.replaceChildren(...PAGES.filter((page) => page.when?.(info) ?? true).map((page) =>
    h('li', {}, h('a', { href: page.href, text: page.label, 'aria-current': location.pathname === page.href ? 'page' : null }))));
}
