/** What the page says of a run, in words, on screen and to a screen reader. */
import { plural } from './dom.js';
import { progress } from './run.js';

/** @typedef {import('./run.js').Run} Run */

/** @param {Run} run */
export function statusLine(run) {
  const { filled, total, step, steps } = progress(run);
  const made = `${filled} of ${plural(total, 'position')} filled`;
  switch (run.state) {
    case 'queued': return run.queue ? `In the queue, ${run.queue} ahead` : 'Waiting for the first step';
    case 'running': return `Step ${step} of ${steps} · ${made}`;
    case 'done': return `Done in ${plural(step, 'step')}`;
    case 'stopped': return `Stopped after ${plural(step, 'step')} · ${made}`;
    default: return filled > 0 ? `Failed after ${plural(step, 'step')}` : 'Nothing was generated';
  }
}

/**
 * How many quarters of a running run are made. Progress is spoken in quarters: every step would drown the listener.
 * @param {Run} run
 * @returns {number} 0–3
 */
export function quarterOf(run) {
  const { step, steps } = progress(run);
  return run.state === 'running' ? Math.min(3, Math.floor((4 * step) / Math.max(1, steps))) : 0;
}

/** @param {Run} run */
export function doneLine(run) {
  const count = run.candidates.length;
  if (run.kind === 'image') return `Done: ${plural(count, 'image')}.`;
  return count === 1 ? `Done: ${run.candidates[0].text ?? ''}` : `Done: ${plural(count, 'candidate')}.`;
}

/** @param {import('./api.js').Problem} problem */
export function problemLine(problem) {
  const retry = problem.retryAfter ? `Try again in ${plural(problem.retryAfter, 'second')}.` : '';
  return [problem.detail, retry].filter(Boolean).join(' ');
}
