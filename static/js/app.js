/** Starts the page: asks the server what it is, then builds one workspace per mode, and the training view. */
import { getInfo } from './api.js';
import { h } from './dom.js';
import { History } from './history.js';
import { IMAGE, TEXT, serverOf } from './modes.js';
import { nav } from './nav.js';
import { tabs } from './tabs.js';
import { bindTheme } from './theme.js';
import { Training } from './training.js';
import { views } from './views.js';
import { Workspace } from './workspace.js';

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

async function main() {
  bindTheme(byId('theme'));
  const info = await getInfo().catch(() => null);
  const server = serverOf(info);
  const mark = nav(byId('nav'), info);
  about(info);

  /** @type {Record<string, Workspace>} */
  const workspaces = {};
  const history = new History(byId('history'), byId('history-list'), (run) => {
    select(run.kind);
    if (!workspaces[run.kind].reopen(run)) return;
    byId(`${run.kind}-results`).scrollIntoView({ block: 'nearest' });
    byId(`${run.kind}-results`).focus({ preventScroll: true });
  });
  for (const mode of [TEXT, IMAGE]) {
    workspaces[mode.kind] = new Workspace(mode, byId(`panel-${mode.kind}`), server, (run) => history.add(run));
  }
  // On a phone the parameters start folded: the prompt and the canvas come first.
  if (window.matchMedia('(max-width: 60rem)').matches) for (const fold of document.querySelectorAll('details.params')) fold.removeAttribute('open');
  if (!server.draws) byId('tab-image').remove();
  const select = tabs(byId('tabs'));
  const training = new Training(byId('view-training'), server, (version) => about(info, version));
  views({
    playground: { title: 'Playground', section: byId('view-playground') },
    training: { title: 'Training', section: byId('view-training'), enter: () => training.start(), leave: () => training.stop() },
  }, byId('page-title'), mark);
  document.documentElement.dataset.ready = 'true';
}

/**
 * @param {any} info
 * @param {string} [current] the version in service, where it is known better than at the start
 */
function about(info, current) {
  const model = info?.model ?? {};
  const parts = [model.name, current ?? info?.adapter ?? model.adapter, info?.version ? `v${String(info.version).replace(/^v/, '')}` : null].filter(Boolean);
  byId('about').replaceChildren(...(info ? parts.map((part) => h('span', { text: String(part) })) : [h('span', { text: 'The server does not answer: defaults are guesses.' })]));
}

main();
