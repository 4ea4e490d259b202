/**
 * The results half of a workspace: shows one run, live, finished or from the history.
 * It never talks to the server; ratings do, in their own module.
 */
import { announce } from './announce.js';
import { CandidateCard } from './candidate.js';
import { choice, isPair } from './choice.js';
import { h, plural } from './dom.js';
import { facts } from './facts.js';
import { Replay } from './replay.js';
import { newRun, progress } from './run.js';
import { doneLine, problemLine, quarterOf, statusLine } from './words.js';

/** @typedef {import('./run.js').Run} Run */

export class Results {
  /**
   * @param {string} prefix of ids
   * @param {Record<string, HTMLElement>} el the workspace's elements by `data-ref`
   * @param {[number, number]} grid
   * @param {() => void} onNext asks for another pair
   */
  constructor(prefix, el, grid, onNext) {
    this.prefix = prefix;
    this.el = el;
    this.grid = grid;
    this.onNext = onNext;
    /** @type {Run|null} what is shown; null while the canvas only waits */
    this.run = null;
    /** @type {CandidateCard[]} */
    this.cards = [];
    /** @type {Replay|null} */
    this.replay = null;
    this.serial = 0;
    this.told = 0;
  }

  /**
   * An empty canvas, as large as the next request will make it.
   * @param {'text'|'image'} kind
   * @param {number} size
   */
  wait(kind, size) {
    this.draw(newRun(kind, { n: 1 }, size));
    this.run = null;
    this.el.cards.append(h('p', { class: 'epigraph' }, h('dfn', { text: 'lacuna' }), ', n.: a blank or missing part, as in a manuscript.'));
    this.el.status.textContent = `${plural(size, 'gap')}, to be filled in any order`;
  }

  /** @param {Run} run */
  open(run) {
    this.run = run;
    this.told = 0;
    this.draw(run);
    this.status();
    if (run.state === 'done') this.tools();
  }

  /** @param {Run} run */
  draw(run) {
    this.replay?.pause();
    this.replay = null;
    this.serial += 1;
    this.cards = run.candidates.map((c) => new CandidateCard(`${this.prefix}-${this.serial}-${c.index}`, run, c, this.grid));
    this.el.cards.replaceChildren(...this.cards.map((card) => card.element));
    this.el.cards.dataset.count = String(run.candidates.length);
    this.el.facts.replaceChildren();
    this.el.choice.replaceChildren();
    this.el.replay.replaceChildren();
    this.el.root.dataset.state = 'waiting';
  }

  /** @param {import('./run.js').Candidate|null} changed */
  update(changed) {
    if (changed) this.cards[changed.index].draw();
    this.status();
  }

  /** The run is over: ratings, figures and replay for what there is. */
  settle() {
    const { run } = this;
    if (!run) return;
    for (const card of this.cards) {
      card.draw();
      card.settle();
    }
    this.status();
    if (progress(run).filled > 0) this.tools();
    if (run.state === 'done') announce(doneLine(run));
  }

  tools() {
    const { run } = this;
    if (!run) return;
    if (run.state === 'done') this.el.facts.replaceChildren(facts(run));
    if (isPair(run)) {
      const cards = this.cards.map((card) => card.element);
      this.el.choice.replaceChildren(choice(run, cards, `${this.prefix}-${this.serial}-choice`, this.onNext));
    }
    this.replay = new Replay(`${this.prefix}-${this.serial}-replay`, run, (shown) => {
      for (const card of this.cards) card.draw(shown);
    });
    this.el.replay.replaceChildren(this.replay.element);
  }

  status() {
    const { run } = this;
    if (!run) return;
    this.el.root.dataset.state = run.state;
    this.el.status.textContent = statusLine(run);
    const quarter = quarterOf(run);
    if (quarter > this.told) {
      this.told = quarter;
      announce(statusLine(run));
    }
  }

  /** @param {import('./api.js').Problem|null} problem */
  problem(problem) {
    this.el.problem.hidden = problem === null;
    if (!problem) return;
    this.el.problemTitle.textContent = problem.title;
    this.el.problemDetail.textContent = problemLine(problem);
  }
}
