/** The learning curve: a point with its interval for every version, on a line from the version it came from. */
import { h, svg } from './dom.js';
import { curveOf, signed } from './versions-data.js';

/** @typedef {import('./versions-data.js').Point} Point */

const HEIGHT = 260;
const MARGIN = { top: 18, right: 30, bottom: 34, left: 58 };
/** Versions drawn; older ones leave at the left. */
const MOST = 40;

const LEGEND = /** @type {const} */ ([['is-current', 'in service'], ['', 'was in service'], ['is-candidate', 'candidate'], ['is-rejected', 'rejected or taken back']]);

export class Curve {
  constructor() {
    this.figure = h('div', { class: 'curve', 'data-testid': 'curve' });
    this.caption = h('p', { class: 'hint' });
    this.legend = legend();
    this.element = h('div', {}, this.figure, this.legend, this.caption);
    /** @type {{points: Point[], current: string, measure: string}} */
    this.shown = { points: [], current: '', measure: 'gain' };
    this.width = 0;
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width > 0 && width !== this.width) {
        this.width = width;
        this.draw();
      }
    }).observe(this.figure);
  }

  /**
   * @param {import('./versions-data.js').Version[]} versions
   * @param {string} current
   */
  show(versions, current) {
    const { measure, points, left } = curveOf(versions);
    this.shown = { points: points.slice(-MOST), current, measure };
    const what = measure === 'agreement' ? 'how much more a version favours what people favoured' : 'reward on held-out prompts, same seeds';
    this.caption.textContent = `Gain over the base: ${what}. A version’s gain is added to its parent’s; the bar is its own 95 % interval.`
      + (left > 0 ? ` ${left} measured in another way ${left === 1 ? 'is' : 'are'} left out.` : '');
    this.draw();
  }

  draw() {
    const { points, current, measure } = this.shown;
    const empty = points.length < 2;
    for (const el of [this.legend, this.caption]) el.hidden = empty;
    if (this.width === 0) return;
    if (empty) {
      this.figure.replaceChildren(h('p', { class: 'empty', text: 'The curve starts with the first version that the gate has measured.' }));
      return;
    }
    const frame = scale(points, this.width);
    const words = points.slice(1).map((p) => `${p.id} ${signed(p.level)}`).join(', ');
    const chart = svg('svg', { width: this.width, height: HEIGHT, viewBox: `0 0 ${this.width} ${HEIGHT}`, role: 'img', 'aria-label': `Learning curve, ${measure} over the base: ${words}. In service: ${current}.` });
    chart.append(...axis(frame, this.width), ...lines(points, frame, current), ...points.map((p, i) => mark(p, i, frame, current)), ...labels(points, frame, current));
    this.figure.replaceChildren(chart);
  }
}

/** @typedef {{x: (i: number) => number, y: (v: number) => number, ticks: number[], gap: number}} Frame */

/**
 * @param {Point[]} points
 * @param {number} width
 * @returns {Frame}
 */
function scale(points, width) {
  const low = Math.min(0, ...points.map((p) => p.low));
  const high = Math.max(0, ...points.map((p) => p.high));
  const step = niceStep((high - low || 1) / 4);
  const [from, to] = [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
  const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  const gap = inner.width / Math.max(1, points.length - 1);
  const ticks = Array.from({ length: Math.round((to - from) / step) + 1 }, (_, i) => from + i * step);
  return { x: (i) => MARGIN.left + i * gap, y: (v) => MARGIN.top + inner.height * (1 - (v - from) / (to - from)), ticks, gap };
}

/** @param {number} least */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 5].find((m) => m * power >= least) ?? 10);
}

/** @param {Frame} frame @param {number} width */
function axis(frame, width) {
  return frame.ticks.flatMap((tick) => {
    const zero = Math.abs(tick) < 1e-9;
    const text = svg('text', { x: MARGIN.left - 16, y: frame.y(tick) + 4, class: 'curve-tick', 'text-anchor': 'end' });
    text.textContent = zero ? '0' : `${tick > 0 ? '+' : '−'}${Number(Math.abs(tick).toPrecision(3))}`;
    return [svg('line', { x1: MARGIN.left - 8, x2: width - 4, y1: frame.y(tick), y2: frame.y(tick), class: zero ? 'curve-zero' : 'curve-rule' }), text];
  });
}

/** @param {Point[]} points @param {Frame} frame @param {string} current */
function lines(points, frame, current) {
  return points.flatMap((point, i) => {
    const from = points.findIndex((p) => p.id === point.parent);
    if (from < 0) return [];
    return [svg('line', { x1: frame.x(from), y1: frame.y(points[from].level), x2: frame.x(i), y2: frame.y(point.level), class: `curve-line ${kind(point, current)}` })];
  });
}

/** @param {Point} point @param {string} current */
function kind(point, current) {
  if (point.id === current) return 'is-current';
  if (['rejected', 'rolled_back'].includes(point.status)) return 'is-rejected';
  return ['candidate', 'canary'].includes(point.status) ? 'is-candidate' : '';
}

/** @param {Point} point @param {number} i @param {Frame} frame @param {string} current */
function mark(point, i, frame, current) {
  const [x, y] = [frame.x(i), frame.y(point.level)];
  const group = svg('g', { class: `curve-point ${kind(point, current)}`, 'data-version': point.id });
  const title = svg('title');
  title.textContent = point.parent === null ? 'The base' : `${point.id}, ${point.status.replace('_', ' ')}: ${signed(point.gain)} over ${point.parent}`;
  group.append(title);
  if (point.parent !== null) {
    group.append(svg('line', { x1: x, x2: x, y1: frame.y(point.low), y2: frame.y(point.high), class: 'curve-bar' }));
    for (const end of [point.low, point.high]) group.append(svg('line', { x1: x - 4, x2: x + 4, y1: frame.y(end), y2: frame.y(end), class: 'curve-bar' }));
  }
  group.append(svg('circle', { cx: x, cy: y, r: point.id === current ? 6 : 4.5 }));
  return group;
}

/** Names under the points, as many as fit. @param {Point[]} points @param {Frame} frame @param {string} current */
function labels(points, frame, current) {
  const names = new Set(points.filter((p) => p.parent !== null).map((p) => p.id.split('@')[0]));
  const short = (/** @type {Point} */ p) => (p.parent === null ? 'base' : names.size === 1 ? `@${p.id.split('@')[1]}` : p.id);
  const every = Math.ceil(Math.max(...points.map((p) => short(p).length * 7 + 10)) / frame.gap);
  return points.flatMap((point, i) => {
    if ((points.length - 1 - i) % every !== 0) return [];
    const text = svg('text', { x: frame.x(i), y: HEIGHT - 10, class: `curve-tick ${point.id === current ? 'is-current' : ''}`, 'text-anchor': 'middle' });
    text.textContent = short(point);
    return [text];
  });
}

function legend() {
  const item = (/** @type {string} */ name, /** @type {string} */ text) => {
    const dot = svg('svg', { width: 14, height: 14, viewBox: '0 0 14 14', 'aria-hidden': 'true' });
    const group = svg('g', { class: `curve-point ${name}` });
    group.append(svg('circle', { cx: 7, cy: 7, r: name === 'is-current' ? 5.5 : 4.5 }));
    dot.append(group);
    return h('span', { class: 'legend-item' }, dot, text);
  };
  return h('div', { class: 'legend', role: 'group', 'aria-label': 'Legend of the curve' }, ...LEGEND.map(([name, text]) => item(name, text)));
}
