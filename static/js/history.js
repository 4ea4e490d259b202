/** The session's runs, in memory only: the newest twenty, each one click away. */
import { h } from './dom.js';

const KEEP = 20;

export class History {
  /**
   * @param {HTMLElement} section hidden while empty
   * @param {HTMLElement} list
   * @param {(run: import('./run.js').Run) => void} onOpen
   */
  constructor(section, list, onOpen) {
    this.section = section;
    this.list = list;
    this.onOpen = onOpen;
  }

  /** @param {import('./run.js').Run} run a finished run */
  add(run) {
    this.section.hidden = false;
    const picture = run.candidates[0]?.picture;
    const answer = run.candidates[0]?.text?.trim() ?? '';
    const button = h('button', { type: 'button', class: 'history-item', 'data-testid': 'history-item', on: { click: () => this.onOpen(run) } },
      picture ? h('img', { src: picture, alt: '', width: 36, height: 36 }) : null,
      h('span', { class: 'history-words' },
        h('span', { class: 'history-prompt', text: run.prompt }),
        h('span', { class: 'history-answer', text: run.kind === 'text' ? answer : `image${run.candidates.length > 1 ? ` × ${run.candidates.length}` : ''}` })));
    this.list.prepend(h('li', {}, button));
    while (this.list.children.length > KEEP) this.list.lastElementChild?.remove();
  }
}
