/**
 * The playground in a real browser against a real server.
 *
 *   BASE_URL=http://127.0.0.1:8080 CHROMIUM=/usr/bin/chromium [SCREENSHOT_DIR=dir] node playground.mjs
 *
 * Ends with one line of JSON: the ratings and choices it gave, for the caller to look up in the database.
 * {"rated":[{"completion_id":"…","metric":"thumbs","value":true},…],"changed":{"completion_id":"…","values":[false,true]},
 *  "preferred":[{"chosen":"…","rejected":"…"},{"ranking":[["…","…"]]}]}
 * ONLY=words runs the checks whose name has them.
 */
import assert from 'node:assert/strict';
import { BASE, assertAccessible, assertNoSidewaysScroll, done, focusBy, launch, open, panel, shot } from './harness.mjs';
import { checks as learning, preferred } from './learning.mjs';

/** @type {{completion_id: string, metric: string, value: boolean}[]} */
const rated = [];
/** @type {{completion_id: string, values: boolean[]}|null} */
let changed = null;

const cells = (where) => where.getByTestId('candidate').first().getByRole('option');
const masked = (where) => where.getByTestId('candidate').first().locator('[role=option].is-masked');
const idOf = async (where) => {
  const id = await where.getByTestId('candidate').first().getAttribute('data-completion');
  assert.ok(id, 'a finished candidate carries its completion id');
  return id;
};

/** The scrubber takes the canvas back to blank, part of the way, and plays it to the end. */
async function assertReplays(where) {
  const range = where.getByTestId('replay-range');
  const steps = Number(await range.getAttribute('max'));
  assert.ok(steps >= 2, 'the replay has steps');
  const final = await masked(where).count();
  await range.fill('0');
  const blank = await masked(where).count();
  await range.fill(String(Math.ceil(steps / 2)));
  const half = await masked(where).count();
  assert.ok(blank > half && half > final, `masked cells at step 0, half and all: ${blank}, ${half}, ${final}`);
  await range.fill('0');
  await where.getByTestId('replay-play').click();
  await where.getByTestId('replay-step').getByText(`step ${steps} / ${steps}`).waitFor();
  assert.equal(await masked(where).count(), final, 'the replay ends where the generation did');
}

async function rate(where, value) {
  await where.getByTestId(value ? 'thumbs-up' : 'thumbs-down').first().click();
  await where.getByTestId('feedback-status').first().getByText('Saved', { exact: true }).waitFor();
  rated.push({ completion_id: await idOf(where), metric: 'thumbs', value });
}

const checks = {
  async 'the stream parser bears any chunking'(browser) {
    const { page, faults, close } = await open(browser);
    const ok = await page.evaluate(async () => {
      const { SseParser } = await import('/static/js/sse.js');
      const stream = '\uFEFF: a comment\r\nevent: step\r\ndata: {"a":\r\ndata:  1}\r\n\r\nevent: empty\n\ndata\n\nid: 7\rdata:é\r\revent: lost\ndata: unfinished';
      const expected = JSON.stringify([
        { event: 'step', data: '{"a":\n 1}', id: '' }, { event: 'message', data: '', id: '' }, { event: 'message', data: 'é', id: '7' },
      ]);
      for (let size = 1; size <= stream.length; size++) {
        const parser = new SseParser();
        const events = [];
        for (let i = 0; i < stream.length; i += size) events.push(...parser.push(stream.slice(i, i + size)));
        if (JSON.stringify(events) !== expected) return `chunks of ${size}: ${JSON.stringify(events)}`;
      }
      return 'ok';
    });
    assert.equal(ok, 'ok');
    assert.deepEqual(faults, []);
    await close();
  },

  async 'text: generates, replays, copies, rates'(browser) {
    const { page, faults, close } = await open(browser);
    const text = panel(page, 'text');
    await assertAccessible(page, 'text, before');
    await shot(page, 'text-before');
    await text.getByTestId('example').first().click();
    const sent = page.waitForRequest((request) => request.url().endsWith('/generate/text'));
    await text.getByTestId('generate').click();
    const request = await sent;
    await done(text);
    const lines = await page.evaluate(() => globalThis.statusLines);
    assert.ok(lines.some((line) => { const [, at, of] = /^Step (\d+) of (\d+)/.exec(line) ?? []; return Number(at) < Number(of); }), `steps were shown as they came: ${lines.slice(0, 5)}`);
    assert.equal(await cells(text).count(), JSON.parse(request.postData()).max_tokens);
    assert.ok((await text.getByTestId('reading').textContent()).trim().length > 0, 'there is an answer');
    await shot(page, 'text-after');
    await assertAccessible(page, 'text, after');
    await assertReplays(text);
    await text.getByTestId('copy-curl').click();
    const command = await page.evaluate(() => navigator.clipboard.readText());
    assert.ok(command.includes(`'${BASE.origin}/generate/text'`) && command.includes(request.postData().replaceAll("'", `'\\''`)), command);
    await rate(text, true);
    assert.deepEqual(faults, []);
    await close();
  },

  async 'image: generates, replays, saves, rates'(browser) {
    const { page, faults, close } = await open(browser, { hash: '#image', colorScheme: 'dark' });
    const image = panel(page, 'image');
    await shot(page, 'image-before');
    await image.getByTestId('example').first().click();
    await image.getByTestId('generate').click();
    await done(image);
    const width = await image.getByTestId('picture').first().evaluate(async (img) => { await img.decode(); return img.naturalWidth; });
    assert.ok(width >= 32, `the picture is ${width} px wide`);
    assert.equal(await masked(image).count(), 0, 'every token of the picture is there');
    await shot(page, 'image-after');
    await assertAccessible(page, 'image, after');
    await assertReplays(image);
    const saved = await page.request.get(new URL(await image.getByTestId('save-image').getAttribute('href'), BASE).href);
    assert.equal(saved.status(), 200);
    assert.match(saved.headers()['content-type'], /^image\//);
    await rate(image, false);
    assert.deepEqual(faults, []);
    await close();
  },

  async 'several candidates stand side by side; the history brings a run back'(browser) {
    const { page, faults, close } = await open(browser, { hash: '#image' });
    const image = panel(page, 'image');
    await image.getByTestId('param-n').fill('2');
    await image.getByTestId('param-seed').fill('7');
    await image.getByTestId('prompt').fill('a large purple triangle');
    await image.getByTestId('generate').click();
    await done(image);
    const boxes = await Promise.all((await image.getByTestId('candidate').all()).map((card) => card.boundingBox()));
    assert.equal(boxes.length, 2);
    assert.ok(Math.abs(boxes[0].y - boxes[1].y) < 2 && boxes[1].x > boxes[0].x, 'side by side');
    await shot(page, 'image-two');
    const first = await idOf(image);
    await image.getByTestId('reset').click();
    assert.equal(await image.getByTestId('param-n').inputValue(), '1');
    await image.getByTestId('generate').click();
    await image.getByTestId('candidate').nth(1).waitFor({ state: 'detached' });
    await done(image);
    await page.getByTestId('history-item').last().click();
    assert.equal(await idOf(image), first);
    assert.equal(await image.getByTestId('param-n').inputValue(), '2');
    assert.equal(await image.getByTestId('param-seed').inputValue(), '7');
    assert.deepEqual(faults, []);
    await close();
  },

  async 'the keyboard alone is enough'(browser) {
    const { page, faults, close } = await open(browser);
    const image = panel(page, 'image');
    const text = panel(page, 'text');
    await page.keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.className), 'skip', 'the skip link comes first');
    await focusBy(page, page.getByTestId('tab-text'));
    await page.keyboard.press('ArrowRight');
    assert.ok(await image.isVisible() && !(await text.isVisible()), 'an arrow changes the tab');
    await page.keyboard.press('ArrowLeft');
    await focusBy(page, text.getByTestId('prompt'));
    await page.keyboard.type('what is 7 * 8 ?');
    await focusBy(page, text.getByTestId('generate'));
    await page.keyboard.press('Enter');
    await done(text);
    await focusBy(page, text.getByTestId('canvas'));
    const before = await text.getByTestId('readout').textContent();
    await page.keyboard.press('ArrowRight');
    assert.match(await text.getByTestId('readout').textContent(), /^Position 2: /);
    assert.match(before, /^Position 1: /);
    await focusBy(page, text.getByTestId('thumbs-down'));
    await page.keyboard.press('Space');
    await text.getByTestId('feedback-status').getByText('Saved', { exact: true }).waitFor();
    // A second thought: the other thumb changes the rating.
    await focusBy(page, text.getByTestId('thumbs-up'), 'Shift+Tab');
    const answered = page.waitForResponse((response) => response.url().endsWith('/feedback'));
    await page.keyboard.press('Space');
    assert.equal((await answered).status(), 201);
    await text.getByTestId('feedback-status').getByText('Saved', { exact: true }).waitFor();
    assert.equal(await text.getByTestId('thumbs-up').getAttribute('aria-pressed'), 'true');
    assert.equal(await text.getByTestId('thumbs-down').getAttribute('aria-pressed'), 'false');
    changed = { completion_id: await idOf(text), values: [false, true] };
    await focusBy(page, text.getByTestId('replay-range'));
    await page.keyboard.press('Home');
    assert.equal(await text.getByTestId('replay-range').inputValue(), '0');
    await focusBy(page, text.getByTestId('prompt'), 'Shift+Tab');
    await page.keyboard.press('Control+Enter');
    await text.locator('[data-state=done]').waitFor({ state: 'detached' });
    await done(text);
    assert.deepEqual(faults, []);
    await close();
  },

  async 'a phone scrolls in one direction only'(browser) {
    const { page, faults, close } = await open(browser, { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
    for (const kind of /** @type {const} */ (['text', 'image'])) {
      await page.getByTestId(`tab-${kind}`).tap();
      const where = panel(page, kind);
      await assertNoSidewaysScroll(page, `${kind}, before`);
      await where.getByTestId('params-toggle').tap();
      await where.getByTestId('params-more').tap();
      await assertNoSidewaysScroll(page, `${kind}, parameters open`);
      await where.getByTestId('param-n').fill('2');
      await where.getByTestId('params-toggle').tap();
      await where.getByTestId('example').first().tap();
      await where.getByTestId('generate').tap();
      await done(where);
      await assertNoSidewaysScroll(page, `${kind}, after`);
      await shot(page, `phone-${kind}`);
    }
    assert.deepEqual(faults, []);
    await close();
  },

  async 'an empty prompt and a refused parameter are explained where they are'(browser) {
    const { page, close } = await open(browser);
    const text = panel(page, 'text');
    await text.getByTestId('generate').click();
    await text.getByTestId('error-prompt').getByText('prompt').waitFor();
    await page.route('**/generate/text', (route) => route.fulfill({
      status: 400, contentType: 'application/problem+json',
      body: JSON.stringify({ type: 'about:blank', title: 'Invalid', status: 400, detail: 'block_length must divide max_tokens', field: 'block_length' }),
    }));
    await text.getByTestId('example').first().click();
    await text.getByTestId('generate').click();
    await text.getByTestId('error-block_length').getByText('must divide').waitFor();
    const field = text.getByTestId('param-block_length');
    assert.ok(await field.isVisible(), 'the folded part opens');
    assert.equal(await field.getAttribute('aria-invalid'), 'true');
    assert.ok(await field.evaluate((el) => el === document.activeElement), 'the focus is on the field');
    await page.unroute('**/generate/text');
    await close();
  },

  async 'stop stops, and the theme holds'(browser) {
    const { page, faults, close } = await open(browser);
    const text = panel(page, 'text');
    await page.route('**/generate/text', () => {}); // never answered
    await text.getByTestId('example').first().click();
    const failed = page.waitForEvent('requestfailed');
    await text.getByTestId('generate').click();
    await text.getByTestId('stop').click();
    assert.match((await failed).failure()?.errorText ?? '', /ABORTED/i);
    await text.getByTestId('stop').waitFor({ state: 'hidden' });
    assert.ok(await text.getByTestId('generate').isEnabled());
    await page.getByTestId('theme').click();
    await page.getByTestId('theme').click();
    assert.equal(await page.locator('html').getAttribute('data-theme'), 'dark');
    await page.reload();
    assert.equal(await page.locator('html').getAttribute('data-theme'), 'dark');
    assert.deepEqual(faults, []);
    await close();
  },
};

const browser = await launch();
let failures = 0;
for (const [name, check] of Object.entries({ ...checks, ...learning })) {
  if (!name.includes(process.env.ONLY ?? '')) continue;
  try {
    await check(browser);
    console.log(`ok   ${name}`);
  } catch (error) {
    failures += 1;
    console.log(`FAIL ${name}\n${error instanceof Error ? error.stack : error}`);
  }
}
await browser.close();
console.log(JSON.stringify({ rated, changed, preferred }));
process.exitCode = failures ? 1 : 0;
