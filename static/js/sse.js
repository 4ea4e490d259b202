/**
 * Server-sent events over `fetch`. `EventSource` can only GET, and generation is a POST,
 * so the stream is parsed here (WHATWG HTML, "Parsing an event stream").
 */

/** @typedef {{event: string, data: string, id: string}} SseEvent */

/** Incremental parser: give it text as it arrives, in pieces of any size. */
export class SseParser {
  constructor() {
    this.buffer = '';
    this.first = true;
    /** A CR ended the last chunk: an LF that opens the next one belongs to it. */
    this.afterCr = false;
    this.event = '';
    /** @type {string[]} */
    this.data = [];
    this.id = '';
  }

  /**
   * @param {string} chunk
   * @returns {SseEvent[]} the events this chunk completes
   */
  push(chunk) {
    if (chunk === '') return [];
    if (this.first) {
      this.first = false;
      if (chunk.charCodeAt(0) === 0xfeff) chunk = chunk.slice(1);
    }
    if (this.afterCr && chunk.startsWith('\n')) chunk = chunk.slice(1);
    this.afterCr = chunk === '' ? false : chunk.endsWith('\r');
    this.buffer += chunk;

    /** @type {SseEvent[]} */
    const events = [];
    const lines = this.buffer.split(/\r\n|\n|\r/);
    this.buffer = lines.pop() ?? '';
    for (const line of lines) {
      const event = this.line(line);
      if (event) events.push(event);
    }
    return events;
  }

  /**
   * @param {string} line
   * @returns {SseEvent|null}
   */
  line(line) {
    if (line === '') return this.dispatch();
    if (line.startsWith(':')) return null;
    const colon = line.indexOf(':');
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? '' : line.slice(colon + 1);
    if (value.startsWith(' ')) value = value.slice(1);
    if (field === 'event') this.event = value;
    else if (field === 'data') this.data.push(value);
    else if (field === 'id' && !value.includes('\0')) this.id = value;
    return null;
  }

  /** @returns {SseEvent|null} */
  dispatch() {
    const { event, data, id } = this;
    this.event = '';
    this.data = [];
    if (data.length === 0) return null;
    return { event: event || 'message', data: data.join('\n'), id };
  }
}

/**
 * Reads a body to its end. An event cut off by the end of the stream is dropped, as the standard says.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<SseEvent>}
 */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      yield* parser.push(done ? decoder.decode() : decoder.decode(value, { stream: true }));
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
