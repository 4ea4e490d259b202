/**
 * The versions of an adapter as plain data: what `/adapters` and `/training` say of them, and the learning curve that
 * follows. No DOM, no fetch.
 */

/** @typedef {{mean: number, ci95: [number, number], n: number}} Interval */
/** @typedef {{name: string, passed: boolean, value: number|null, limit: number|null, interval: Interval|null}} Check */
/** @typedef {{passed: boolean, checks: Check[]}} Verdict */

/**
 * @typedef {object} Version
 * @property {string} id
 * @property {string} status
 * @property {string|null} parent
 * @property {number|null} rank
 * @property {number|null} bytes
 * @property {Date|null} created
 * @property {boolean} loaded requests can ask for it
 * @property {Verdict|null} gate
 */

/** @typedef {{active: string, canary: {id: string, share: number}|null}} Routes */

/** The model without an adapter. */
export const BASE = 'base@0';

/** @param {unknown} value @returns {number|null} */
const number = (value) => (typeof value === 'number' && Number.isFinite(value) ? value : null);

/** @param {any} value an RFC 3339 moment */
function dateOf(value) {
  const date = typeof value === 'string' ? new Date(value) : null;
  return date && !Number.isNaN(date.getTime()) ? date : null;
}

/** @param {any} value @returns {Interval|null} */
function intervalOf(value) {
  const ends = value?.ci95;
  if (!Array.isArray(ends) || number(value.mean) === null || ends.some((end) => number(end) === null)) return null;
  return { mean: value.mean, ci95: [ends[0], ends[1]], n: number(value.n) ?? 0 };
}

/** @param {any} value @returns {Verdict|null} */
export function verdictOf(value) {
  if (!Array.isArray(value?.checks) || value.checks.length === 0) return null;
  return {
    passed: value.passed === true,
    checks: value.checks.map((/** @type {any} */ check) => ({
      name: String(check.name), passed: check.passed === true, value: number(check.value), limit: number(check.limit), interval: intervalOf(check.interval),
    })),
  };
}

/**
 * @param {any} reply of `GET /adapters`
 * @param {(id: string) => any} gate a version's verdict, where it is known
 * @returns {Version[]} oldest first
 */
export function versionsOf(reply, gate) {
  const all = (reply?.adapters ?? []).map((/** @type {any} */ one) => ({
    id: String(one.version), status: String(one.status), parent: one.parent ?? null, rank: number(one.rank), bytes: number(one.bytes),
    created: dateOf(one.created_at), loaded: one.loaded === true, gate: verdictOf(gate(String(one.version))),
  }));
  return all.sort((/** @type {Version} */ a, /** @type {Version} */ b) => (a.created?.getTime() ?? 0) - (b.created?.getTime() ?? 0) || numberOf(a.id) - numberOf(b.id));
}

/** @param {string} id the number of `name@number` */
const numberOf = (id) => Number(id.split('@')[1] ?? 0);

/** @param {any} reply of `GET /adapters` @returns {Routes} */
export function routesOf(reply) {
  const { active, canary } = reply?.routes ?? {};
  return { active: String(active ?? BASE), canary: canary ? { id: String(canary.version), share: Number(canary.share) } : null };
}

/** The check that says how much better a version is than the one before it. @param {Verdict|null} gate */
export function gainOf(gate) {
  return gate?.checks.find((check) => (check.name === 'gain' || check.name === 'agreement') && (check.interval?.n ?? 0) > 0) ?? null;
}

/**
 * @typedef {object} Point
 * @property {string} id
 * @property {string} status
 * @property {number} level gains added up from the base to this version
 * @property {number} low
 * @property {number} high
 * @property {number} gain over its parent
 * @property {string|null} parent null: the base
 */

/**
 * A version's level is its parent's plus its gain, each measured on prompts that neither learned from. The interval is
 * that of its own gain. Versions that were measured in another way, and what came of them, are left out and counted.
 * @param {Version[]} versions oldest first
 * @returns {{measure: string, points: Point[], left: number}}
 */
export function curveOf(versions) {
  const measured = versions.filter((version) => gainOf(version.gate) !== null);
  const measure = gainOf(measured.at(-1)?.gate ?? null)?.name ?? 'gain';
  /** @type {Map<string, Point>} */
  const points = new Map([[BASE, { id: BASE, status: 'base', level: 0, low: 0, high: 0, gain: 0, parent: null }]]);
  let left = 0;
  for (const version of measured) {
    const gain = gainOf(version.gate);
    const parent = points.get(version.parent ?? BASE);
    if (gain?.name !== measure || !gain.interval || !parent) {
      left += 1;
      continue;
    }
    const { mean, ci95 } = gain.interval;
    points.set(version.id, {
      id: version.id, status: version.status, parent: parent.id, gain: mean, level: parent.level + mean, low: parent.level + ci95[0], high: parent.level + ci95[1],
    });
  }
  return { measure, points: [...points.values()], left };
}

/** @param {number|null} value with a sign */
export function signed(value) {
  if (value === null) return '–';
  return `${value > 0 ? '+' : value < 0 ? '−' : ''}${plain(Math.abs(value))}`;
}

/** @param {number|null} value with as many digits as tell */
export function plain(value) {
  if (value === null) return '–';
  const size = Math.abs(value);
  const text = size !== 0 && size < 0.001 ? value.toExponential(0) : String(Number(value.toFixed(size < 10 ? 3 : 1)));
  return text.replace('-', '−');
}
