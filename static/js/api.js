/**
 * The server's HTTP contract, and nothing of the page: requests in, plain objects and `Problem`s out.
 */
import { readEvents } from './sse.js';

/**
 * A failure worth showing: RFC 9457 problem details, or what stands in for them.
 */
export class Problem extends Error {
  /**
   * @param {{title?: string, detail?: string, status?: number, type?: string, field?: string,
   *          limit?: unknown, actual?: unknown, hint?: string, retryAfter?: number|null}} body
   */
  constructor(body) {
    // Beside its field the field's name says nothing, and a hint is a sentence of its own.
    const detail = sentence((body.detail ?? '').replace(body.field ? `${body.field}: ` : '', ''));
    const hint = sentence(body.hint ?? '');
    super([detail || sentence(body.title ?? '') || 'The request failed.', hint].filter(Boolean).join(' '));
    this.name = 'Problem';
    this.title = body.title || 'The request failed';
    this.detail = [sentence(body.detail ?? ''), hint].filter(Boolean).join(' ');
    this.status = body.status ?? 0;
    this.type = body.type ?? 'about:blank';
    /** `sampler.threshold` for `/sampler/threshold`, `$.sampler.threshold` and the like. */
    this.field = (body.field ?? '').replace(/^[#$]?[./]/, '').replaceAll('/', '.');
    this.limit = body.limit;
    this.actual = body.actual;
    this.retryAfter = body.retryAfter ?? null;
  }
}

/** @param {string} text */
function sentence(text) {
  if (text === '') return '';
  const closed = /[.!?]$/.test(text) ? text : `${text}.`;
  return closed[0].toUpperCase() + closed.slice(1);
}

/** @param {Response} response */
async function problemOf(response) {
  const seconds = Number(response.headers.get('retry-after'));
  const base = {
    title: response.statusText || `Status ${response.status}`,
    status: response.status,
    retryAfter: Number.isFinite(seconds) && seconds > 0 ? seconds : null,
  };
  const body = await response.json().catch(() => ({}));
  return new Problem({ ...base, ...(body && typeof body === 'object' ? body : {}) });
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 */
async function request(path, init) {
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new Problem({ title: 'The server does not answer', detail: 'Is it still running? Nothing was lost: try again when it is back.' });
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/**
 * @param {unknown} body
 * @param {Record<string, string>} [headers]
 */
function post(body, headers = {}) {
  return { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) };
}

/** @returns {Promise<any>} */
export async function getInfo() {
  return (await request('/info', { headers: { accept: 'application/json' } })).json();
}

/**
 * Generates, reporting each event as it comes.
 * @param {'text'|'image'} kind
 * @param {object} body
 * @param {{signal: AbortSignal, onEvent: (name: string, data: any) => void}} options
 * @returns {Promise<any>} the `done` object, the same as the answer without streaming
 * @throws {Problem} for an error answer, an `error` event, or a stream that ends before `done`
 */
export async function generate(kind, body, { signal, onEvent }) {
  const response = await request(pathOf(kind), { ...post(body, { accept: 'text/event-stream' }), signal });
  if (!response.body || !(response.headers.get('content-type') ?? '').includes('text/event-stream')) return response.json();
  for await (const { event, data } of events(response.body)) {
    const value = JSON.parse(data);
    if (event === 'error') throw new Problem(value);
    if (event === 'done') return value;
    onEvent(event, value);
  }
  throw new Problem({ title: 'The connection ended early', detail: 'The server closed the stream before the result was complete.' });
}

/**
 * Turns a broken connection into a `Problem`; an abort stays an abort.
 * @param {ReadableStream<Uint8Array>} body
 */
async function* events(body) {
  try {
    yield* readEvents(body);
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new Problem({ title: 'The connection broke', detail: 'The stream stopped before the result was complete.' });
  }
}

/** @param {'text'|'image'} kind */
export function pathOf(kind) {
  return `/generate/${kind}`;
}

/** @param {string} id the picture of a stored completion, decoded again */
export function imageUrl(id) {
  return `/completions/${encodeURIComponent(id)}/image`;
}

/** This browser's own random id: a person's judgements count as one person's. The server keeps only a keyed hash of it. */
function visitor() {
  const known = localStorage.getItem('lacuna-visitor');
  if (known) return known;
  const id = newKey();
  localStorage.setItem('lacuna-visitor', id);
  return id;
}

/**
 * Durable when this resolves.
 * @param {{completion_id: string, metric: string, value: boolean|number|string}} feedback
 * @param {string} key repeating a request with its key stores it once
 * @returns {Promise<{feedback_id: string}>}
 */
export async function sendFeedback(feedback, key) {
  return (await request('/feedback', post({ ...feedback, user: visitor() }, { 'idempotency-key': key }))).json();
}

/**
 * Which of two is better, or that neither is. Durable when this resolves.
 * @param {{chosen: string, rejected: string}|{ranking: string[][]}} preference
 * @param {string} key repeating a request with its key stores it once
 * @returns {Promise<{preference_id: string}>}
 */
export async function sendPreference(preference, key) {
  return (await request('/preferences', post({ ...preference, user: visitor() }, { 'idempotency-key': key }))).json();
}

/** @returns {Promise<any>} what the trainer does, from what, with what result */
export async function getTraining() {
  return (await request('/training', { headers: { accept: 'application/json' } })).json();
}

/** @returns {Promise<any>} the versions and which of them are served */
export async function getAdapters() {
  return (await request('/adapters', { headers: { accept: 'application/json' } })).json();
}

/** @param {string} id @returns {Promise<any>} a version with what the gate measured */
export async function getAdapter(id) {
  return (await request(`/adapters/${encodeURIComponent(id)}`, { headers: { accept: 'application/json' } })).json();
}

/** @param {'trigger'|'pause'|'resume'} what */
export async function steerTraining(what) {
  await request(`/training/${what}`, { method: 'POST' });
}

/**
 * Whole again when this resolves: the change is in the log and served.
 * @param {'approve'|'reject'|'rollback'} what
 * @param {string} id the version; a roll-back takes back what is served
 * @param {string} reason kept in the audit trail
 */
export async function changeAdapter(what, id, reason) {
  const path = what === 'rollback' ? '/adapters/rollback' : `/adapters/${encodeURIComponent(id)}/${what}`;
  await request(path, post(reason ? { reason } : {}));
}

/** `crypto.randomUUID` exists only in secure contexts, and a LAN address is not one. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('');
}
