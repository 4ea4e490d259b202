/**
 * What differs between text and image: words on the page, parameters, the shape of the request.
 * A third mode is one more entry here and a canvas to draw it.
 */

/**
 * @typedef {object} Field one parameter
 * @property {string} key dotted path in the request body
 * @property {string} label
 * @property {'range'|'select'|'seed'} kind
 * @property {number} [least] smallest value that may be typed; the slider starts at `min`
 * @property {number} [min]
 * @property {number} [max]
 * @property {number} [step]
 * @property {string} [maxLimit] name in `/info` → `limits` that lowers `max`
 * @property {[string, string][]} [options] value, label
 * @property {number|string} fallback used where `/info` has no default
 * @property {number} [omit] the value that means "off", left out of the request
 * @property {[string, string]} [when] shown only while that field has that value
 * @property {boolean} [more] kept behind "More"
 * @property {string} [hint]
 */

/**
 * @typedef {object} Mode
 * @property {'text'|'image'} kind
 * @property {string} label
 * @property {string} placeholder
 * @property {string[]} examples
 * @property {Field[]} fields
 * @property {object} extras merged into every request
 */

/** @type {Field} */
const N = { key: 'n', label: 'Candidates', kind: 'range', min: 1, max: 4, step: 1, maxLimit: 'max_n', fallback: 1 };
/** @type {Field} */
const SEED = { key: 'seed', label: 'Seed', kind: 'seed', fallback: '', hint: 'Empty draws a new one each time.' };

/** @type {Mode} */
export const TEXT = {
  kind: 'text',
  label: 'Text',
  placeholder: 'Ask something, or give a beginning',
  examples: [
    'Tom has 3 apples. He buys 4 more. How many apples does he have now?',
    'what is 7 * 8 ?',
    'Anna has 12 pens. She gives 5 to Ben and finds 3 more. How many pens does she have?',
  ],
  fields: [
    N,
    { key: 'max_tokens', label: 'Length', kind: 'range', least: 1, min: 8, max: 256, step: 8, maxLimit: 'max_tokens', fallback: 32, hint: 'Blanks on the canvas.' },
    { key: 'steps', label: 'Steps', kind: 'range', min: 1, max: 128, step: 1, maxLimit: 'max_steps', fallback: 16, hint: 'Fewer fill more blanks at once.' },
    { key: 'temperature', label: 'Temperature', kind: 'range', min: 0, max: 2, step: 0.05, fallback: 0 },
    {
      key: 'sampler.kind', label: 'Order', kind: 'select', fallback: 'low_confidence', hint: 'Which blanks fill first.',
      options: [['low_confidence', 'Most confident first'], ['threshold', 'All above a confidence'], ['random', 'Random']],
    },
    { key: 'sampler.threshold', label: 'Confidence', kind: 'range', min: 0.05, max: 1, step: 0.05, fallback: 0.9, when: ['sampler.kind', 'threshold'] },
    { key: 'block_length', label: 'Block', kind: 'range', least: 1, min: 4, max: 256, step: 4, maxLimit: 'max_tokens', fallback: 32, more: true, hint: 'Blocks fill from left to right.' },
    { key: 'guidance_scale', label: 'Guidance', kind: 'range', min: 0, max: 6, step: 0.25, fallback: 0, more: true },
    { key: 'top_p', label: 'Top-p', kind: 'range', min: 0.05, max: 1, step: 0.05, fallback: 1, omit: 1, more: true },
    { key: 'top_k', label: 'Top-k', kind: 'range', min: 0, max: 100, step: 1, fallback: 0, omit: 0, more: true, hint: '0 is off.' },
    SEED,
  ],
  extras: { stream: true, stream_mode: 'edits', return: ['token_ids', 'commit_steps', 'logprobs'] },
};

/** @type {Mode} */
export const IMAGE = {
  kind: 'image',
  label: 'Image',
  placeholder: 'Describe a scene of coloured shapes',
  examples: ['a yellow circle above a green triangle', 'a large purple triangle', 'three green crosses', 'a large circle', 'two red circles left of a blue square'],
  fields: [
    N,
    { key: 'steps', label: 'Steps', kind: 'range', min: 1, max: 64, step: 1, maxLimit: 'max_steps', fallback: 64 },
    { key: 'guidance_scale', label: 'Guidance', kind: 'range', min: 0, max: 6, step: 0.25, fallback: 1, hint: 'How closely the picture follows the words.' },
    { key: 'temperature', label: 'Temperature', kind: 'range', min: 0, max: 4, step: 0.05, fallback: 2, hint: 'Noise in the order; 0 always draws the same.' },
    {
      key: 'sampler.kind', label: 'Sampler', kind: 'select', fallback: 'maskgit',
      options: [['maskgit', 'MaskGIT: most confident first'], ['emerge', 'Emerge: in random order']],
    },
    {
      key: 'schedule', label: 'Schedule', kind: 'select', fallback: 'cosine', more: true, hint: 'How the pace changes from step to step.',
      options: [['cosine', 'Cosine'], ['linear', 'Linear'], ['pow2', 'Power of two']],
    },
    SEED,
  ],
  extras: { stream: true, stream_mode: 'edits', return: ['codes', 'commit_steps', 'logprobs'] },
};

/** @typedef {{info: any, grid: [number, number], draws: boolean}} Server `draws`: the model makes images */

/**
 * What the page needs of `/info`, whatever of it is there.
 * @param {any} info
 * @returns {Server}
 */
export function serverOf(info) {
  const grid = info?.model?.image?.grid ?? info?.model?.grid;
  const usable = Array.isArray(grid) && grid.length === 2 && grid.every((n) => Number.isInteger(n) && n > 0 && n <= 128);
  return { info: info ?? {}, grid: usable ? [grid[0], grid[1]] : [8, 8], draws: info?.model?.image !== null };
}

/**
 * How many positions a request's canvas has.
 * @param {Mode} mode
 * @param {Record<string, any>} values
 * @param {Server} server
 */
export function canvasSize(mode, values, server) {
  return mode.kind === 'image' ? server.grid[0] * server.grid[1] : values.max_tokens;
}
