/**
 * What one generation has produced so far, as plain data: no DOM, no fetch.
 * The views draw it at any step, live or in replay.
 */

/**
 * @typedef {object} Cell one position of the canvas
 * @property {number|null} token
 * @property {string} text
 * @property {number|null} confidence 0–1
 * @property {number|null} step zero-based step of its commit; -1: given; null: masked
 */

/**
 * @typedef {object} Candidate
 * @property {number} index
 * @property {Cell[]} cells
 * @property {number} shown steps made so far: a cell is visible when `step < shown`
 * @property {number} steps steps announced, or made once done
 * @property {{step: number, src: string}[]} previews
 * @property {string|null} picture data URL of the finished image
 * @property {string|null} id completion id, once done
 * @property {number|null} seed
 * @property {string|null} text
 * @property {string|null} finish
 * @property {number|null} positions positions evaluated
 */

/**
 * @typedef {object} Run
 * @property {'text'|'image'} kind
 * @property {Record<string, any>} body the request exactly as sent
 * @property {string} prompt
 * @property {Candidate[]} candidates
 * @property {'queued'|'running'|'done'|'stopped'|'failed'} state
 * @property {number|null} queue canvases ahead in the queue
 * @property {any} result the `done` object
 * @property {Map<number, string>} words token id → text, learnt from the edits
 * @property {Record<string, any>} settings the parameters panel's values, for the history
 */

/** @returns {Cell} */
const blank = () => ({ token: null, text: '', confidence: null, step: null });

/**
 * @param {'text'|'image'} kind
 * @param {any} body
 * @param {number} size positions per candidate
 * @returns {Run}
 */
export function newRun(kind, body, size) {
  const candidates = Array.from({ length: body.n ?? 1 }, (_, index) => ({
    index, cells: Array.from({ length: size }, blank), shown: 0, steps: body.steps ?? 0, previews: [],
    picture: null, id: null, seed: null, text: null, finish: null, positions: null,
  }));
  return { kind, body, prompt: body.prompt ?? body.template ?? '', candidates, state: 'queued', queue: null, result: null, words: new Map(), settings: {} };
}

/**
 * Folds one streamed event into the run.
 * @param {Run} run
 * @param {string} name
 * @param {any} data
 * @returns {Candidate|null} the candidate it changed
 */
export function applyEvent(run, name, data) {
  if (name === 'queued') {
    run.queue = data.ahead ?? data.position ?? null;
    return null;
  }
  run.state = 'running';
  const candidate = run.candidates[data.index ?? 0];
  if (!candidate) return null;
  if (name === 'step') applyStep(run, candidate, data);
  else if (name === 'preview') {
    const src = pictureOf(data);
    if (src) candidate.previews.push({ step: data.step ?? candidate.shown, src });
  } else return null;
  return candidate;
}

/**
 * @param {Run} run
 * @param {Candidate} candidate
 * @param {any} data
 */
function applyStep(run, candidate, data) {
  const step = data.step ?? candidate.shown;
  if (data.steps) candidate.steps = data.steps;
  candidate.shown = Math.max(candidate.shown, step + 1);
  for (const edit of data.edits ?? []) {
    if (!Number.isInteger(edit.position) || edit.position < 0) continue;
    while (candidate.cells.length <= edit.position) candidate.cells.push(blank());
    const cell = candidate.cells[edit.position];
    if (edit.token === null || edit.token === undefined) Object.assign(cell, blank()); // masked again
    else {
      Object.assign(cell, { token: edit.token, text: edit.text ?? '', confidence: edit.confidence ?? null, step });
      if (edit.text !== undefined) run.words.set(edit.token, edit.text);
    }
  }
}

/**
 * Settles the run with the final answer: ids, text, and the authoritative commit steps.
 * @param {Run} run
 * @param {any} result
 */
export function finishRun(run, result) {
  run.state = 'done';
  run.result = result;
  for (const [i, item] of (result.completions ?? result.images ?? []).entries()) {
    const candidate = run.candidates[i];
    if (!candidate) continue;
    candidate.id = item.id ?? null;
    candidate.seed = item.seed ?? null;
    candidate.text = item.text ?? null;
    candidate.finish = item.finish_reason ?? null;
    candidate.positions = item.positions_evaluated ?? null;
    candidate.picture = pictureOf(item);
    settleCells(run, candidate, item);
    const last = Math.max(candidate.shown - 1, ...candidate.cells.map((c) => c.step ?? -1));
    candidate.steps = item.steps ?? last + 1;
    candidate.shown = last + 1;
  }
}

/**
 * @param {Run} run
 * @param {Candidate} candidate
 * @param {any} item
 */
function settleCells(run, candidate, item) {
  const tokens = item.token_ids ?? item.codes ?? [];
  const steps = item.commit_steps ?? [];
  const logprobs = item.logprobs ?? [];
  for (const [i, token] of tokens.entries()) {
    const cell = candidate.cells[i] ?? (candidate.cells[i] = blank());
    const step = steps[i];
    if (token === null || step === null) continue;
    // Text behind an early end of sequence was never committed: -1 there says "nothing happened", not "given".
    if (step === -1 && cell.step === null && run.kind === 'text' && !run.body.template) continue;
    cell.text = cell.token === token ? cell.text : (run.words.get(token) ?? (run.kind === 'text' ? `⟨${token}⟩` : ''));
    cell.token = token;
    if (Number.isInteger(step)) cell.step = step;
    else if (cell.step === null) cell.step = Math.max(candidate.shown - 1, 0);
    const logprob = typeof logprobs[i] === 'number' ? logprobs[i] : logprobs[i]?.logprob;
    if (cell.confidence === null && typeof logprob === 'number') cell.confidence = Math.exp(logprob);
  }
}

/**
 * A data URL from any of the shapes a picture comes in.
 * @param {any} item
 * @returns {string|null}
 */
function pictureOf(item) {
  const value = item.image ?? item.b64 ?? null;
  if (typeof value !== 'string' || value === '') return null;
  return value.startsWith('data:image/') ? value : `data:image/${item.format ?? 'png'};base64,${value}`;
}

/**
 * @param {Cell} cell
 * @param {number} shown
 */
export function isVisible(cell, shown) {
  return cell.step !== null && cell.step < shown;
}

/**
 * End of sequence and its kin: tokens with no text of their own.
 * @param {Cell} cell
 */
export function isSpecial(cell) {
  return cell.text === '' || /^<[^<>\s]+>$/.test(cell.text);
}

/**
 * Whether the cell was committed by the last of `shown` steps. Nothing is "recent" in a finished canvas.
 * @param {Candidate} candidate
 * @param {Cell} cell
 * @param {number} shown
 */
export function isRecent(candidate, cell, shown) {
  return cell.step !== null && cell.step === shown - 1 && !(candidate.id !== null && shown >= candidate.shown);
}

/**
 * The text after `shown` steps, with each run of masked positions as a gap.
 * @param {Candidate} candidate
 * @param {number} shown
 * @returns {(string|null)[]} pieces; null is a gap
 */
export function reading(candidate, shown) {
  const { cells } = candidate;
  const end = candidate.id === null ? cells.length - 1 : cells.findLastIndex((c) => c.step !== null);
  /** @type {(string|null)[]} */
  const pieces = [];
  for (const cell of cells.slice(0, end + 1)) {
    if (!isVisible(cell, shown)) {
      if (pieces.at(-1) !== null || pieces.length === 0) pieces.push(null);
    } else if (!isSpecial(cell)) {
      if (typeof pieces.at(-1) === 'string') pieces[pieces.length - 1] += cell.text;
      else pieces.push(cell.text);
    }
  }
  if (typeof pieces[0] === 'string') pieces[0] = pieces[0].trimStart();
  return pieces;
}

/**
 * How many positions each step committed, over all candidates.
 * @param {Run} run
 * @returns {number[]}
 */
export function commitsPerStep(run) {
  const counts = new Array(Math.max(1, ...run.candidates.map((c) => c.shown))).fill(0);
  for (const candidate of run.candidates) {
    for (const cell of candidate.cells) if (cell.step !== null && cell.step >= 0 && cell.step < counts.length) counts[cell.step] += 1;
  }
  return counts;
}

/** @param {Run} run */
export function progress(run) {
  const cells = run.candidates.flatMap((c) => c.cells);
  return {
    filled: cells.filter((c) => c.step !== null).length,
    total: cells.length,
    step: Math.max(0, ...run.candidates.map((c) => c.shown)),
    steps: Math.max(0, ...run.candidates.map((c) => c.steps)),
  };
}
