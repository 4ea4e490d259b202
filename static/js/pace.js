/**
 * A small model fills a whole canvas faster than an eye can follow. The stream is read as fast as it comes
 * (a slow reader would lose steps), and shown at a pace one can see. The figures under a result stay the server's.
 */

/** The least time between two steps on screen, and how much all of them together may add. */
const STEP_MS = 45;
const TOTAL_MS = 1400;

export class Pace {
  /**
   * @param {number} steps expected
   * @param {(name: string, data: any) => void} show
   */
  constructor(steps, show) {
    this.show = show;
    const calm = window.matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.gap = calm ? 0 : Math.min(STEP_MS, TOTAL_MS / Math.max(1, steps));
    /** @type {{name: string, data: any}[]} */
    this.queue = [];
    this.step = -1;
    this.shownAt = -Infinity;
    this.timer = 0;
    /** @type {(() => void)|null} */
    this.onEmpty = null;
  }

  /**
   * @param {string} name
   * @param {any} data
   */
  push(name, data) {
    this.queue.push({ name, data });
    if (!this.timer) this.drain();
  }

  drain() {
    this.timer = 0;
    for (;;) {
      const next = this.queue[0];
      if (!next) break;
      const step = next.name === 'step' ? next.data.step : this.step;
      if (step !== this.step) {
        const wait = this.shownAt + this.gap - performance.now();
        if (wait > 0) {
          this.timer = window.setTimeout(() => this.drain(), wait);
          return;
        }
        this.step = step;
        this.shownAt = performance.now();
      }
      this.queue.shift();
      this.show(next.name, next.data);
    }
    this.onEmpty?.();
  }

  /**
   * Resolves once everything pushed is on screen.
   * @param {AbortSignal} signal shows the rest at once
   * @returns {Promise<void>}
   */
  async settled(signal) {
    if (this.timer) {
      await new Promise((resolve) => {
        this.onEmpty = () => resolve(undefined);
        if (signal.aborted) this.flush();
        signal.addEventListener('abort', () => this.flush(), { once: true });
      });
    }
  }

  /** Shows all that waits, now. */
  flush() {
    window.clearTimeout(this.timer);
    this.gap = 0;
    this.shownAt = -Infinity;
    this.drain();
  }
}
