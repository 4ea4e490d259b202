/** The line of figures under a finished run. */
import { h } from './dom.js';

/** @param {number} n */
const count = (n) => n.toLocaleString('en', { maximumFractionDigits: n < 10 ? 1 : 0 });

/** @param {number} ms */
const time = (ms) => (ms >= 1000 ? `${count(ms / 1000)} s` : `${count(ms)} ms`);

/**
 * @param {import('./run.js').Run} run
 * @returns {HTMLElement}
 */
export function facts(run) {
  const { result } = run;
  const steps = run.candidates.reduce((sum, c) => sum + c.steps, 0);
  const committed = run.candidates.reduce((sum, c) => sum + c.cells.filter((cell) => (cell.step ?? -1) >= 0).length, 0);
  const positions = run.candidates.reduce((sum, c) => sum + (c.positions ?? 0), 0) || (result?.usage?.positions_evaluated ?? 0);
  /** @type {[string, string, string][]} name, value, explanation */
  const items = [];
  if (result?.model) items.push(['Model', result.model, '']);
  if (result?.adapter) items.push(['Adapter', result.adapter, '']);
  if (Number.isFinite(result?.timing?.queue_ms)) items.push(['Queue', time(result.timing.queue_ms), '']);
  if (Number.isFinite(result?.timing?.denoise_ms)) items.push(['Denoise', time(result.timing.denoise_ms), '']);
  items.push(['Steps', count(steps), 'over all candidates']);
  if (committed > 0 && steps > 0) items.push(['Tokens per forward', count(committed / steps), 'committed in each step, on average']);
  if (positions > 0) items.push(['Positions', count(positions), 'evaluated by the model']);
  if (positions > 0 && committed > 0) items.push(['Positions per token', count(positions / committed), 'evaluated for each token committed']);
  return h('dl', { class: 'facts', 'data-testid': 'facts' },
    ...items.map(([name, value, why]) => h('div', { title: why || null }, h('dt', { text: name }), h('dd', { text: value }))));
}
