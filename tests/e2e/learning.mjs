/**
 * The parts of the page that learning needs: choosing between two, the training view, before and after.
 * What a server can only show after a while of learning is answered here, in the shapes that it answers in.
 */
import assert from 'node:assert/strict';
import { BASE, assertAccessible, assertNoSidewaysScroll, done, focusBy, open, panel, shot } from './harness.mjs';

/** Choices that the server has stored, for the caller to look up. @type {({chosen: string, rejected: string}|{ranking: string[][]})[]} */
export const preferred = [];

const idsOf = async (where) => Promise.all((await where.getByTestId('candidate').all()).map((card) => card.getAttribute('data-completion')));

/** A request to /preferences as it goes out, and its answer. */
async function preference(page, act) {
  const answered = page.waitForResponse((response) => response.url().endsWith('/preferences'));
  await act();
  const response = await answered;
  const { user, ...body } = JSON.parse(response.request().postData());
  assert.match(user, /^[0-9a-f]{32}$/, 'a random id, the same for every judgement of this browser');
  return { status: response.status(), body, key: response.request().headers()['idempotency-key'] };
}

/** Two pictures, in as few steps as will do; not the same ones, as the colour is open and the seed is one that shows it. */
async function pair(image) {
  await image.getByTestId('compare').check();
  assert.equal(await image.getByTestId('param-n').inputValue(), '2', 'the switch asks for two');
  await image.getByTestId('param-steps').fill('8');
  await image.getByTestId('param-seed').fill('1');
  await image.getByTestId('prompt').fill('a large circle');
  await image.getByTestId('generate').click();
  await done(image);
  await image.getByTestId('choice').waitFor();
}

const interval = (mean, half) => ({ mean, ci95: [mean - half, mean + half], n: 96 });
const verdict = (mean, half, kl = 0.08) => ({
  passed: mean > half && kl <= 0.5,
  checks: [
    { name: 'gain', passed: mean > half, value: mean - half, limit: 0, interval: interval(mean, half) },
    { name: 'guard:scene', passed: true, value: -0.03, limit: -0.1, interval: interval(-0.005, 0.025) },
    { name: 'kl', passed: kl <= 0.5, value: kl, limit: 0.5, interval: null },
    { name: 'diversity', passed: true, value: 0.92, limit: 0.5, interval: null },
  ],
});

/** A server that has learned: four versions, one of them refused, one waiting for approval. */
function learned() {
  const version = (id, status, parent, minute, gate) => ({
    version: id, status, parent, created_at: `2026-01-31T12:${minute}:00Z`, rank: 8, bytes: 1_210_000, base_sha256: 'd6', gate_passed: gate.passed, run: null, loaded: true, gate,
  });
  const world = {
    state: 'collecting', reason: '88 more judgements are needed', active: 'main@3',
    versions: [
      version('main@1', 'retired', 'base@0', '10', verdict(0.06, 0.05)), version('main@2', 'rejected', 'main@1', '20', verdict(-0.01, 0.04)),
      version('main@3', 'active', 'main@1', '30', verdict(0.12, 0.04)), version('main@4', 'candidate', 'main@3', '40', verdict(0.07, 0.03)),
    ],
    /** @type {{path: string, body: string|null}[]} */
    posted: [],
  };
  return world;
}

/** Answers the routes of learning from `world`. */
async function serve(page, world) {
  const reply = (route, status, body) => route.fulfill({ status, contentType: status >= 400 ? 'application/problem+json' : 'application/json', body: JSON.stringify(body) });
  const routes = () => ({ generation: 7, active: world.active, canary: world.canary ?? null });
  await page.route(/\/(training|adapters)(\/.*)?$/, async (route) => {
    const request = route.request();
    const path = decodeURIComponent(new URL(request.url()).pathname);
    if (request.method() === 'POST') {
      world.posted.push({ path, body: request.postData() });
      return world.refuse ? reply(route, 409, world.refuse) : (world.onPost?.(path), reply(route, 200, routes()));
    }
    if (path === '/adapters') return reply(route, 200, { routes: routes(), adapters: world.versions.map(({ gate, ...rest }) => rest).toReversed() });
    if (path.startsWith('/adapters/')) return reply(route, 200, world.versions.find(({ version }) => path.endsWith(version)));
    return reply(route, 200, {
      state: world.state, reason: world.reason, waiting: 168, min_samples: 256, subjects: 41, current: world.active, routes: routes(), run: world.run ?? null,
      lanes: { groups: { used: 1284, dropped: { no_variance: 212, stale: 31 } }, regenerated: { used: 0, dropped: {} }, singles: { used: 377, dropped: { warming_up: 50 } } },
      last_run: { id: 'r', status: 'candidate', error: null, metrics: { candidate: 'main@4', samples: 512, reward: 0.61, updates: [{ drift: 0.003 }], gate: world.gate ?? world.versions.at(-1).gate } },
    });
  });
}

/** Opens the training view on a server that has learned. */
async function openLearned(browser, world, options = {}) {
  const opened = await open(browser, options);
  await serve(opened.page, world);
  await opened.page.getByTestId('nav-training').click();
  await opened.page.getByTestId('versions').waitFor();
  return opened;
}

const row = (page, version) => page.getByTestId('versions').locator(`[data-version="${version}"]`);

export const checks = {
  async 'the better of two, by keyboard; it is stored once and stands'(browser) {
    const { page, faults, close } = await open(browser, { hash: '#image' });
    const image = panel(page, 'image');
    await pair(image);
    const [left, right] = await idsOf(image);
    await shot(page, 'choice');
    await assertAccessible(page, 'a choice');
    await focusBy(page, image.getByTestId('prefer-right'));
    const { status, body, key } = await preference(page, () => page.keyboard.press('Enter'));
    assert.equal(status, 201);
    assert.deepEqual(body, { chosen: right, rejected: left });
    assert.match(key, /^[0-9a-f]{32}$/);
    await image.getByTestId('choice-status').getByText('thank you').waitFor();
    assert.equal(await image.getByTestId('prefer-right').getAttribute('aria-pressed'), 'true');
    assert.equal(await image.getByTestId('adapter').count(), 2, 'each result says which version made it');
    assert.match(await image.getByTestId('adapter').first().textContent(), /^[a-z0-9._-]+@\d+$/);
    let again = 0;
    page.on('request', (request) => { again += Number(request.url().endsWith('/preferences')); });
    await image.getByTestId('prefer-left').click({ force: true });
    assert.equal(await image.getByTestId('prefer-left').getAttribute('aria-pressed'), 'false', 'the choice stands');
    // A run from the history shows what was chosen.
    await page.getByTestId('history-item').last().click();
    assert.equal(await image.getByTestId('prefer-right').getAttribute('aria-pressed'), 'true');
    assert.equal(again, 0, 'nothing was sent again');
    preferred.push(body);
    assert.deepEqual(faults, []);
    await close();
  },

  async 'a tie; what refuses it is shown, and trying again keeps the key'(browser) {
    const { page, close } = await open(browser, { hash: '#image' });
    const image = panel(page, 'image');
    await pair(image);
    const [left, right] = await idsOf(image);
    await page.route('**/preferences', (route) => route.fulfill({
      status: 503, contentType: 'application/problem+json', body: JSON.stringify({ title: 'Unavailable', status: 503, detail: 'the log is busy', hint: 'try again' }),
    }), { times: 1 });
    const first = await preference(page, () => image.getByTestId('prefer-tie').click());
    assert.equal(first.status, 503);
    await image.getByTestId('choice-status').getByText('The log is busy. Try again.').waitFor();
    assert.equal(await image.getByTestId('prefer-tie').getAttribute('aria-pressed'), 'false');
    const second = await preference(page, () => image.getByTestId('choice-retry').click());
    assert.deepEqual(second, { status: 201, body: { ranking: [[left, right]] }, key: first.key });
    await image.getByTestId('choice-status').getByText('thank you').waitFor();
    preferred.push(second.body);
    await image.getByTestId('next-pair').click();
    await image.getByTestId('choice').waitFor({ state: 'detached' });
    await done(image);
    await image.getByTestId('choice').waitFor();
    assert.notEqual((await idsOf(image))[0], left, 'another pair');
    await close();
  },

  async 'the training view shows the trainer, and its switches work'(browser) {
    const { page, faults, close } = await open(browser);
    await panel(page, 'text').getByTestId('prompt').fill('what is 7 * 8 ?');
    await page.getByTestId('nav-training').click();
    await page.getByTestId('lanes').waitFor();
    const status = async () => (await page.request.get(new URL('/training', BASE).href)).json();
    const { current, lanes } = await status();
    assert.equal(await page.getByTestId('current').textContent(), current);
    for (const [lane, { used }] of Object.entries(lanes)) {
      assert.equal(await page.locator(`[data-lane="${lane}"] [data-label=Used]`).textContent(), used.toLocaleString('en'));
    }
    assert.ok(await row(page, 'base@0').isVisible());
    assert.equal(await page.getByTestId('nav-training').getAttribute('aria-current'), 'page');
    assert.ok(!(await panel(page, 'text').isVisible()), 'one view at a time');
    await shot(page, 'training-real');
    await assertAccessible(page, 'training');
    await page.getByTestId('training-pause').click();
    await page.getByTestId('training-state').getByText('Paused', { exact: true }).waitFor();
    assert.equal((await status()).state, 'paused');
    await page.getByTestId('training-resume').click();
    await page.getByTestId('training-pause').waitFor();
    assert.notEqual((await status()).state, 'paused');
    await page.getByTestId('nav-playground').click();
    assert.equal(await panel(page, 'text').getByTestId('prompt').inputValue(), 'what is 7 * 8 ?', 'the playground is as it was');
    assert.deepEqual(faults, []);
    await close();
  },

  async 'the curve, the gate, the lanes and the versions of a server that has learned'(browser) {
    const world = learned();
    const { page, faults, close } = await openLearned(browser, world, { colorScheme: 'dark' });
    const points = page.getByTestId('curve').locator('[data-version]');
    assert.deepEqual(await points.evaluateAll((all) => all.map((el) => el.getAttribute('data-version'))), ['base@0', 'main@1', 'main@2', 'main@3', 'main@4']);
    assert.match(await page.getByTestId('curve').locator('.is-current[data-version]').getAttribute('data-version'), /^main@3$/);
    const height = (version) => page.getByTestId('curve').locator(`[data-version="${version}"] circle`).evaluate((el) => Number(el.getAttribute('cy')));
    assert.ok(await height('main@4') < await height('main@3') && await height('main@3') < await height('base@0'), 'gains add up along the line of parents');
    assert.match(await page.getByTestId('curve').locator('svg').getAttribute('aria-label'), /main@3 \+0\.18, main@4 \+0\.25/);
    const check = (name) => page.getByTestId('gate').locator(`[data-check="${name}"]`);
    assert.match(await check('gain').textContent(), /\+0\.07 \[\+0\.04, \+0\.1\].*> 0.*pass/);
    assert.match(await check('kl').textContent(), /0\.08.*≤ 0\.5.*pass/);
    assert.match(await page.locator('[data-lane=groups]').textContent(), /1,284.*243.*no variance 212.*stale 31/);
    assert.equal(await page.getByTestId('training-progress').evaluate((el) => el.value), 168 / 256);
    assert.equal(await row(page, 'main@2').getByRole('button').count(), 0, 'a refused version stays refused');
    assert.equal(await row(page, 'main@3').getByRole('button').textContent(), 'Roll back');
    await shot(page, 'training-learned');
    await assertAccessible(page, 'training, learned');
    // What changes is drawn; a candidate that fails says where.
    Object.assign(world, { state: 'training', run: { done: 3, total: 12, last: { loss: -0.01, kl: 0.02, clip_fraction: 0.04 } }, gate: verdict(0.01, 0.04, 0.7) });
    await page.getByTestId('training-state').getByText('Training', { exact: true }).waitFor();
    assert.equal(await page.getByTestId('training-reason').textContent(), 'Batch 3 of 12');
    assert.equal(await page.getByTestId('training-progress').evaluate((el) => el.value), 0.25);
    assert.equal(await page.getByTestId('training-trigger').getAttribute('aria-disabled'), 'true');
    await check('kl').getByText('fail').waitFor();
    assert.match(await page.locator('.gate-line').textContent(), /failed 2 of 4 checks/);
    // A canary is served to all or taken back; while it runs, that is what rolling back means.
    world.versions.at(-1).status = 'canary';
    world.canary = { version: 'main@4', share: 0.25 };
    await row(page, 'main@4').getByText('canary, 25 %').waitFor();
    assert.deepEqual(await row(page, 'main@4').getByRole('button').allTextContents(), ['Serve to all', 'Roll back']);
    assert.equal(await row(page, 'main@3').getByRole('button').count(), 0);
    assert.deepEqual(faults, []);
    await close();
  },

  async 'approve, reject, roll back: each asks first, with a reason'(browser) {
    const world = learned();
    const { page, close } = await openLearned(browser, world);
    await row(page, 'main@4').getByTestId('reject').click();
    await page.keyboard.press('Escape');
    await page.getByTestId('ask').waitFor({ state: 'detached' });
    assert.deepEqual(world.posted, [], 'nothing happens without a yes');
    assert.ok(await row(page, 'main@4').getByTestId('reject').evaluate((el) => el === document.activeElement), 'the focus comes back');
    world.refuse = { title: 'Conflict', status: 409, detail: 'somebody else was faster', hint: 'look again' };
    await row(page, 'main@4').getByTestId('approve').click();
    assert.ok(await page.getByTestId('ask-reason').evaluate((el) => el === document.activeElement), 'the focus is in the question');
    await page.keyboard.type('looks right');
    await shot(page, 'training-ask');
    await page.keyboard.press('Enter');
    await page.getByTestId('ask-problem').getByText('Somebody else was faster. Look again.').waitFor();
    world.refuse = undefined;
    world.onPost = (path) => {
      const [, id, what] = /^\/adapters\/(?:([^/]+)\/)?(\w+)$/.exec(path) ?? [];
      const set = (version, status) => { world.versions.find((one) => one.version === version).status = status; };
      if (what === 'approve') (set('main@3', 'retired'), set(id, 'active'), (world.active = id));
      if (what === 'rollback') (set('main@4', 'rolled_back'), set('main@3', 'active'), (world.active = 'main@3'));
    };
    await page.getByTestId('ask-confirm').click();
    await page.getByTestId('ask').waitFor({ state: 'detached' });
    await row(page, 'main@4').getByText('active', { exact: true }).waitFor();
    await page.getByTestId('current').getByText('main@4').waitFor();
    await row(page, 'main@4').getByTestId('rollback').click();
    await page.getByTestId('ask-confirm').click();
    await row(page, 'main@4').getByText('rolled back').waitFor();
    await page.getByTestId('current').getByText('main@3').waitFor();
    assert.deepEqual(world.posted, [
      { path: '/adapters/main@4/approve', body: '{"reason":"looks right"}' }, { path: '/adapters/main@4/approve', body: '{"reason":"looks right"}' }, { path: '/adapters/rollback', body: '{}' },
    ]);
    await close();
  },

  async 'before and after: the same prompt and seeds, two versions'(browser) {
    const world = learned();
    const { page, faults, close } = await openLearned(browser, world);
    const asked = [];
    // One version after the other has learned here only; the pictures are the base's, drawn in few steps.
    await page.route('**/generate/*', async (route) => {
      const body = JSON.parse(route.request().postData());
      asked.push({ ...body });
      const response = await route.fetch({ postData: JSON.stringify({ ...body, steps: 4, adapter: undefined, seed: body.seed + Number(body.adapter === 'main@3') }) });
      await route.fulfill({ response, json: { ...(await response.json()), adapter: body.adapter } });
    });
    assert.equal(await page.getByTestId('strip-before').inputValue(), 'base@0');
    assert.equal(await page.getByTestId('strip-after').inputValue(), 'main@3', 'what is in service');
    const before = await page.getByTestId('strip').boundingBox();
    await page.getByTestId('strip-prompt').fill('a large purple triangle');
    await page.getByTestId('strip-seed').fill('5');
    await page.getByTestId('strip-go').click();
    for (const [side, version] of [['before', 'base@0'], ['after', 'main@3']]) {
      const strip = page.getByTestId(`strip-row-${side}`);
      await strip.locator('img').nth(3).waitFor();
      assert.equal(await strip.getByTestId('strip-version').textContent(), version);
      assert.ok(await strip.locator('img').first().evaluate(async (img) => { await img.decode(); return img.naturalWidth >= 32; }));
    }
    assert.deepEqual(asked.sort((a, b) => a.adapter.localeCompare(b.adapter)), ['base@0', 'main@3'].map((adapter) => ({ prompt: 'a large purple triangle', n: 4, seed: 5, store: false, adapter })));
    const after = await page.getByTestId('strip').boundingBox();
    assert.deepEqual([before.width, before.height], [after.width, after.height], 'the pictures stand where their places were');
    await shot(page, 'training-strip');
    await page.getByTestId('strip-kind').selectOption('text');
    asked.length = 0;
    await page.getByTestId('strip-go').click();
    await page.waitForFunction(() => document.querySelectorAll('.strip-text').length === 8 && !document.querySelector('.strip-text:empty'));
    assert.deepEqual(asked.map(({ seed, n, temperature }) => [seed, n, temperature]), [[5, 4, 0.7], [5, 4, 0.7]]);
    await page.getByTestId('strip-after').selectOption('base@0');
    assert.equal(await page.getByTestId('strip-go').getAttribute('aria-disabled'), 'true', 'a version against itself shows nothing');
    assert.deepEqual(faults, []);
    await close();
  },

  async 'a phone shows the training view without scrolling sideways'(browser) {
    const { page, faults, close } = await openLearned(browser, learned(), { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
    await assertNoSidewaysScroll(page, 'training');
    await row(page, 'main@4').getByTestId('approve').tap();
    await page.getByTestId('ask').waitFor();
    await assertNoSidewaysScroll(page, 'training, a question');
    await page.getByTestId('ask-cancel').tap();
    await shot(page, 'phone-training');
    assert.deepEqual(faults, []);
    await close();
  },

  async 'a server that does not learn says so; one that is away is waited for'(browser) {
    const { page, close } = await open(browser);
    let answer = { status: 409, contentType: 'application/problem+json', body: JSON.stringify({ title: 'Conflict', status: 409, detail: 'the model takes no adapters', hint: 'serve another' }) };
    await page.route(/\/(training|adapters)$/, (route) => (answer ? route.fulfill(answer) : route.abort()));
    await page.getByTestId('nav-training').click();
    await page.getByTestId('training-state').getByText('Learning is off').waitFor();
    assert.match(await page.getByTestId('training-reason').textContent(), /takes no adapters/);
    assert.equal(await page.getByTestId('training-trigger').isVisible(), false);
    answer = null;
    await page.getByTestId('nav-playground').click();
    await page.getByTestId('nav-training').click();
    await page.getByTestId('training-problem').getByText('does not answer').or(page.getByTestId('training-problem').getByText('still running')).first().waitFor();
    await close();
  },
};
