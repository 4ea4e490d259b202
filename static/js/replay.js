/**
 * The replay scrubber: a range over the steps, with the number of commits of each step drawn above it.
 */
import { h, icon, plural, svg } from './dom.js';
import { commitsPerStep } from './run.js';

/** How long a whole replay takes, about; and the bounds of one step. */
const REPLAY_MS = 3200;
const STEP_MS = [60, 400];

export class Replay {
  /**
   * @param {string} id unique in the page
   * @param {import('./run.js').Run} run a finished or stopped run
   * @param {(shown: number) => void} onStep
   */
  constructor(id, run, onStep) {
    this.counts = commitsPerStep(run);
    this.total = run.candidates.reduce((sum, c) => sum + c.cells.filter((cell) => cell.step !== null).length, 0);
    this.given = run.candidates.reduce((sum, c) => sum + c.cells.filter((cell) => cell.step === -1).length, 0);
    this.onStep = onStep;
    this.timer = 0;
    const steps = this.counts.length;
    this.play = /** @type {HTMLButtonElement} */ (h('button', { type: 'button', class: 'round', 'data-testid': 'replay-play', on: { click: () => this.toggle() } }));
    this.range = /** @type {HTMLInputElement} */ (h('input', {
      type: 'range', id, min: 0, max: steps, step: 1, value: steps, 'aria-label': 'Replay: step', 'data-testid': 'replay-range',
      on: { input: () => { this.pause(); this.show(Number(this.range.value)); } },
    }));
    this.output = h('output', { class: 'replay-step', for: id, 'data-testid': 'replay-step' });
    this.bars = this.histogram();
    this.element = h('div', { class: 'replay', role: 'group', 'aria-label': 'Replay', 'data-testid': 'replay' },
      this.play, h('div', { class: 'replay-track' }, this.bars, this.range), this.output);
    this.label(steps);
    this.setPlaying(false);
  }

  histogram() {
    const steps = this.counts.length;
    const tallest = Math.max(1, ...this.counts);
    const bars = svg('svg', { class: 'replay-bars', viewBox: `0 0 ${steps} 20`, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    for (const [i, count] of this.counts.entries()) {
      const height = count === 0 ? 0.5 : 1 + 19 * (count / tallest);
      bars.append(svg('rect', { x: i + 0.2, y: 20 - height, width: 0.6, height }));
    }
    return bars;
  }

  toggle() {
    if (this.timer) return this.pause();
    const steps = this.counts.length;
    let at = Number(this.range.value) >= steps ? 0 : Number(this.range.value);
    const pace = Math.min(STEP_MS[1], Math.max(STEP_MS[0], REPLAY_MS / steps));
    this.setPlaying(true);
    this.show(at);
    this.timer = window.setInterval(() => {
      at += 1;
      this.show(at);
      if (at >= steps) this.pause();
    }, pace);
  }

  pause() {
    window.clearInterval(this.timer);
    this.timer = 0;
    this.setPlaying(false);
  }

  /** @param {number} shown */
  show(shown) {
    this.range.value = String(shown);
    this.label(shown);
    this.onStep(shown);
  }

  /** @param {number} shown */
  label(shown) {
    const filled = this.given + this.counts.slice(0, shown).reduce((a, b) => a + b, 0);
    this.output.textContent = `step ${shown} / ${this.counts.length}`;
    this.range.setAttribute('aria-valuetext', `after step ${shown} of ${this.counts.length}: ${filled} of ${plural(this.total, 'position')} filled`);
    for (const [i, bar] of [...this.bars.children].entries()) bar.classList.toggle('is-past', i < shown);
  }

  /** @param {boolean} playing */
  setPlaying(playing) {
    this.play.setAttribute('aria-label', playing ? 'Pause replay' : 'Play replay');
    this.play.replaceChildren(icon(playing ? 'pause' : 'play'));
  }
}
