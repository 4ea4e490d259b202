/** What the browser test stands on: Chromium, a watched page, and waiting. */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

export const BASE = new URL(process.env.BASE_URL ?? 'http://127.0.0.1:8080');
const SHOTS = process.env.SCREENSHOT_DIR;
const TIMEOUT = Number(process.env.E2E_TIMEOUT_MS ?? 120_000);

/** @returns {Promise<import('playwright-core').Browser>} */
export async function launch() {
  if (SHOTS) await mkdir(SHOTS, { recursive: true });
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking', '--disable-sync'],
  });
}

/**
 * Opens the playground in a page of its own that remembers every console error, every exception and every
 * request to another host.
 * @param {import('playwright-core').Browser} browser
 * @param {import('playwright-core').BrowserContextOptions & {hash?: string}} [options]
 */
export async function open(browser, { hash = '', ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, permissions: ['clipboard-read', 'clipboard-write'], ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(TIMEOUT);
  /** @type {string[]} */
  const faults = [];
  page.on('console', (message) => message.type() === 'error' && faults.push(`console: ${message.text()}`));
  page.on('pageerror', (error) => faults.push(`exception: ${error.stack ?? error}`));
  page.on('request', (request) => {
    const url = new URL(request.url());
    if (!['data:', 'blob:'].includes(url.protocol) && url.host !== BASE.host) faults.push(`request to another host: ${url}`);
  });
  // Every status line ever shown, however briefly.
  await page.addInitScript(() => {
    globalThis.statusLines = [];
    new MutationObserver((records) => {
      for (const { target, addedNodes } of records) {
        if (target instanceof Element && target.matches('[data-testid=status]')) for (const node of addedNodes) globalThis.statusLines.push(node.textContent);
      }
    }).observe(document, { childList: true, subtree: true });
  });
  await page.goto(new URL(`/${hash}`, BASE).href);
  await page.locator('html[data-ready=true]').waitFor({ state: 'attached' });
  return { page, context, faults, close: () => context.close() };
}

/**
 * @param {import('playwright-core').Page} page
 * @param {'text'|'image'} kind
 */
export function panel(page, kind) {
  return page.getByTestId(`panel-${kind}`);
}

/** @param {import('playwright-core').Locator} where a panel whose generation has begun */
export async function done(where) {
  await where.locator('[data-state=done], [data-state=failed]').first().or(where.getByTestId('problem').filter({ visible: true })).first().waitFor();
  const state = await where.locator('.workspace').getAttribute('data-state');
  assert.equal(state, 'done', `the generation ended as "${state}": ${await where.getByTestId('problem').textContent()}`);
  await where.getByTestId('facts').waitFor();
}

/**
 * @param {import('playwright-core').Page} page
 * @param {string} name
 */
export async function shot(page, name) {
  if (SHOTS) await page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
}

/**
 * Moves the focus with one key until `wanted` has it.
 * @param {import('playwright-core').Page} page
 * @param {import('playwright-core').Locator} wanted
 * @param {string} key
 */
export async function focusBy(page, wanted, key = 'Tab') {
  for (let i = 0; i < 60; i++) {
    if (await wanted.evaluate((el) => el === document.activeElement)) return assertFocusShows(page);
    await page.keyboard.press(key);
  }
  assert.fail(`sixty times ${key} never reached ${wanted}`);
}

/** @param {import('playwright-core').Page} page */
async function assertFocusShows(page) {
  const shows = await page.evaluate(() => {
    const el = document.activeElement;
    return [el, el?.closest('form')].some((e) => e && getComputedStyle(e).outlineStyle !== 'none' && parseFloat(getComputedStyle(e).outlineWidth) >= 1);
  });
  assert.ok(shows, 'the focus is invisible');
}

const CONTROLS = new Set(['button', 'link', 'textbox', 'searchbox', 'spinbutton', 'slider', 'combobox', 'checkbox', 'radio', 'tab', 'tabpanel', 'listbox', 'option', 'image', 'navigation']);

/**
 * Every control and picture has a name in the accessibility tree; ids are unique; one h1; a language.
 * @param {import('playwright-core').Page} page
 * @param {string} where
 */
export async function assertAccessible(page, where) {
  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send('Accessibility.getFullAXTree');
  await session.detach();
  const controls = nodes.filter((node) => !node.ignored && CONTROLS.has(String(node.role?.value)));
  assert.ok(controls.length > 15, `${where}: only ${controls.length} controls in the accessibility tree`);
  const nameless = controls.filter((node) => !String(node.name?.value ?? '').trim()).map((node) => node.role?.value);
  assert.deepEqual(nameless, [], `${where}: controls without a name`);
  const page_ = await page.evaluate(() => {
    const ids = [...document.querySelectorAll('[id]')].map((el) => el.id);
    const dangling = ['aria-controls', 'aria-labelledby', 'aria-describedby', 'for'].flatMap((name) =>
      [...document.querySelectorAll(`[${name}]`)].flatMap((el) => (el.getAttribute(name) ?? '').split(/\s+/).filter((id) => id && !document.getElementById(id))));
    return { doubled: ids.filter((id, i) => ids.indexOf(id) !== i), dangling, h1: document.querySelectorAll('h1').length, lang: document.documentElement.lang };
  });
  assert.deepEqual(page_, { doubled: [], dangling: [], h1: 1, lang: 'en' }, where);
}

/**
 * @param {import('playwright-core').Page} page
 * @param {string} where
 */
export async function assertNoSidewaysScroll(page, where) {
  const { content, window, wide } = await page.evaluate(() => {
    const { scrollWidth: content, clientWidth: window } = document.documentElement;
    const scrolls = (el) => el !== document.body && (getComputedStyle(el).overflowX !== 'visible' || (el.parentElement !== null && scrolls(el.parentElement)));
    const beyond = (el) => el.getBoundingClientRect().right > window + 0.5 && !scrolls(el.parentElement);
    const name = (el) => `${el.tagName.toLowerCase()}.${el.getAttribute('class') ?? ''} "${(el.textContent ?? '').slice(0, 40)}"`;
    return { content, window, wide: content > window ? [...document.querySelectorAll('body *')].filter(beyond).map(name).slice(0, 8) : [] };
  });
  assert.ok(content <= window, `${where}: ${content} px of content in a window of ${window} px: ${wide.join(', ')}`);
}
