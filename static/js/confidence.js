/**
 * The confidence scale: five tints a reader can tell apart and match to the legend, and for the lowest
 * a dot under the token, as editors of papyri mark a doubtful letter; colour is never the only sign.
 */
import { h } from './dom.js';

/** Lower bounds of the levels 0–4. */
const BOUNDS = [0, 0.5, 0.75, 0.9, 0.99];

/**
 * @param {number|null} confidence
 * @returns {number|null} 0–4
 */
export function level(confidence) {
  if (confidence === null) return null;
  return BOUNDS.findLastIndex((bound) => confidence >= bound || bound === 0);
}

/** @param {number|null} confidence */
export function percent(confidence) {
  if (confidence === null) return 'confidence unknown';
  // 99.97 % must not read as certain.
  const shown = confidence < 1 && confidence > 0.999 ? '>99.9' : (confidence * 100).toFixed(confidence >= 0.995 ? 1 : 0);
  return `confidence ${shown} %`;
}

/**
 * @param {'text'|'image'} kind
 * @returns {HTMLElement}
 */
export function legend(kind) {
  const labels = ['< 50', '50', '75', '90', '99 %'];
  const scale = h('span', { class: 'legend-scale' });
  for (const [i, label] of labels.entries()) {
    const sample = h('span', { class: `swatch cell`, 'data-level': i, 'aria-hidden': 'true' }, i === 0 && kind === 'text' ? h('span', { class: 'cell-text', text: 'a' }) : null);
    scale.append(h('span', { class: 'legend-item' }, sample, label));
  }
  return h('div', { class: 'legend', role: 'group', 'aria-label': 'Legend' },
    h('span', { class: 'legend-item' }, h('span', { class: 'swatch cell is-masked', 'aria-hidden': 'true' }), 'gap'),
    h('span', { class: 'legend-item' }, h('span', { class: 'swatch cell is-recent', 'aria-hidden': 'true' }), 'last step'),
    h('span', { class: 'legend-item' }, 'confidence', scale));
}
