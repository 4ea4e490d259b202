/** The tables of the training view: lanes, the last gate, the versions. Each is drawn whole from plain data. */
import { h, plural } from './dom.js';
import { BASE, gainOf, plain, signed } from './versions-data.js';

/** @typedef {import('./versions-data.js').Version} Version */
/** @typedef {import('./versions-data.js').Routes} Routes */
/** @typedef {'approve'|'reject'|'rollback'} Decision */

/** @type {Record<string, string>} */
const LANES = {
  groups: 'several answers to one prompt, rated or ranked',
  regenerated: 'logged prompts answered anew, scored by hooks',
  singles: 'one rated answer, against the running mean',
};

/** @type {Record<string, string>} */
const CHECKS = { gain: 'Gain in reward', agreement: 'Agreement with people', kl: 'KL from the version before', diversity: 'Diversity kept' };

/** The checks whose limit is the most that is allowed; of every other it is the least. */
const CEILINGS = new Set(['kl']);

/** @param {string} name */
const words = (name) => name.replaceAll('_', ' ');

/**
 * @param {string[]} heads
 * @param {string} label
 * @param {HTMLElement[]} rows
 * @param {string} testid
 */
function table(heads, label, rows, testid) {
  const columns = heads.map((head) => h('th', { scope: 'col' }, head === 'Decide' ? h('span', { class: 'sr-only', text: head }) : head));
  return h('table', { class: 'sheet', 'aria-label': label, 'data-testid': testid }, h('thead', {}, h('tr', {}, ...columns)), h('tbody', {}, ...rows));
}

/** @param {string} label shown before the value where the table is folded @param {...(Node|string|null)} children */
const cell = (label, ...children) => h('td', { 'data-label': label }, h('span', {}, ...children));

/** @param {Record<string, {used: number, dropped: Record<string, number>}>} lanes */
export function lanes(lanes) {
  const rows = Object.entries(lanes).map(([name, { used, dropped }]) => {
    const reasons = Object.entries(dropped ?? {}).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
    const sum = reasons.reduce((total, [, count]) => total + count, 0);
    return h('tr', { 'data-lane': name },
      h('th', { scope: 'row' }, h('span', { class: 'row-name', text: words(name) }), LANES[name] ? h('span', { class: 'hint', text: LANES[name] }) : null),
      cell('Used', used.toLocaleString('en')), cell('Dropped', sum.toLocaleString('en')),
      cell('Why', reasons.length === 0 ? '–' : h('span', { class: 'reasons' }, ...reasons.map(([reason, count]) => h('span', { 'data-reason': reason, text: `${words(reason)} ${count.toLocaleString('en')}` })))));
  });
  return rows.length ? table(['Lane', 'Used', 'Dropped', 'Why'], 'Lanes', rows, 'lanes') : h('p', { class: 'empty', text: 'No lane is open.' });
}

/** @param {import('./versions-data.js').Interval} interval */
const ends = ({ ci95 }) => h('span', { class: 'hint', text: ` [${signed(ci95[0])}, ${signed(ci95[1])}]` });

/**
 * @param {import('./versions-data.js').Verdict|null} gate
 * @param {string|null} candidate
 */
export function gate(gate, candidate) {
  if (!gate) return h('p', { class: 'empty', text: 'No candidate has been measured yet.' });
  const rows = gate.checks.map(({ name, passed, value, limit, interval }) => {
    const [, guard] = /^guard:(.+)$/.exec(name) ?? [];
    const sign = CEILINGS.has(name) ? '≤' : (name === 'gain' || name === 'agreement') ? '>' : '≥';
    return h('tr', { 'data-check': name },
      h('th', { scope: 'row' }, h('span', { class: 'row-name', text: guard ? `Guard: ${words(guard)}` : (CHECKS[name] ?? words(name)) }), interval ? h('span', { class: 'hint', text: plural(interval.n, 'pair') }) : null),
      cell('Measured', interval ? signed(interval.mean) : plain(value), interval ? ends(interval) : null),
      cell('Allowed', interval ? h('span', { class: 'hint', text: 'lower end ' }) : null, `${sign} ${plain(limit)}`),
      cell('Verdict', h('span', { class: 'verdict', 'data-passed': String(passed), text: passed ? 'pass' : 'fail' })));
  });
  const failed = gate.checks.filter((check) => !check.passed).length;
  return h('div', {},
    h('p', { class: 'gate-line' }, h('strong', { text: candidate ?? 'The candidate' }), gate.passed ? ' passed every check.' : ` failed ${failed} of ${plural(gate.checks.length, 'check')} and is not served.`),
    table(['Check', 'Measured', 'Allowed', 'Verdict'], 'Checks of the last gate', rows, 'gate'));
}

/** @param {number|null} bytes */
function size(bytes) {
  if (bytes === null) return '–';
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
}

/** @param {Date|null} date */
function when(date) {
  if (!date) return '–';
  const today = date.toDateString() === new Date().toDateString();
  const text = date.toLocaleString('en', { ...(today ? {} : { month: 'short', day: 'numeric' }), hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
  return h('time', { datetime: date.toISOString(), title: date.toLocaleString('en'), text });
}

/**
 * @param {Version[]} versions oldest first
 * @param {Routes} routes
 * @param {(what: Decision, id: string, label: string) => void} onDecide
 */
export function versions(versions, routes, onDecide) {
  const rows = versions.toReversed().map((version) => row(version, routes, onDecide));
  rows.push(h('tr', { 'data-version': BASE }, h('th', { scope: 'row' }, h('span', { class: 'row-name', text: BASE }), h('span', { class: 'hint', text: 'no adapter' })),
    cell('Status', pill(routes.active === BASE ? 'active' : 'base', null)), ...['Gain over parent', 'Rank', 'Size', 'Made'].map((label) => cell(label, '–')), h('td', { class: 'acts' })));
  return table(['Version', 'Status', 'Gain over parent', 'Rank', 'Size', 'Made', 'Decide'], 'Adapter versions', rows, 'versions');
}

/** @param {string} status @param {number|null} share */
function pill(status, share) {
  return h('span', { class: 'pill', 'data-status': status, text: share === null ? words(status) : `${words(status)}, ${Math.round(share * 100)} %` });
}

/**
 * What may be decided about a version: the server's rules, so that no button leads to a refusal.
 * @param {Version} version
 * @param {Routes} routes
 * @returns {[Decision, string][]}
 */
function decisions({ id, status }, routes) {
  if (status === 'candidate') return [['approve', 'Approve'], ['reject', 'Reject']];
  if (status === 'canary') return [['approve', 'Serve to all'], ['rollback', 'Roll back']];
  if (status === 'retired') return [['approve', 'Serve again']];
  // While a canary runs, rolling back takes that back.
  return status === 'active' && routes.active === id && !routes.canary ? [['rollback', 'Roll back']] : [];
}

/**
 * @param {Version} version
 * @param {Routes} routes
 * @param {(what: Decision, id: string, label: string) => void} onDecide
 */
function row(version, routes, onDecide) {
  const { id, status } = version;
  const gain = gainOf(version.gate)?.interval;
  const acts = decisions(version, routes).map(([what, label]) => h('button', {
    type: 'button', class: 'small', 'data-key': `${what} ${id}`, 'aria-label': `${label}: ${id}`, 'data-testid': what, text: label, on: { click: () => onDecide(what, id, label) },
  }));
  return h('tr', { 'data-version': id, 'data-current': String(routes.active === id) },
    h('th', { scope: 'row' }, h('span', { class: 'row-name', text: id }), version.parent ? h('span', { class: 'hint', text: `from ${version.parent}` }) : null),
    cell('Status', pill(status, routes.canary?.id === id ? routes.canary.share : null)),
    cell('Gain over parent', gain ? signed(gain.mean) : '–', gain ? ends(gain) : null),
    cell('Rank', plain(version.rank)), cell('Size', size(version.bytes)), cell('Made', when(version.created)), h('td', { class: 'acts' }, ...acts));
}
