/** A request as a shell command. */
import { pathOf } from './api.js';

/** @param {string} text */
function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/**
 * @param {'text'|'image'} kind
 * @param {object} body the body exactly as sent
 * @param {string} origin
 */
export function curl(kind, body, origin) {
  return [
    `curl -sSN ${quote(origin + pathOf(kind))}`,
    `  -H 'content-type: application/json'`,
    `  -d ${quote(JSON.stringify(body))}`,
  ].join(' \\\n');
}
