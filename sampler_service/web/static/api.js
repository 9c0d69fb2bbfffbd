// What the server is asked. Every answer has a deadline; a failure says what happened.

const DEADLINE_MS = 8000;

export class Gone extends Error {}

export async function ask(path, options = {}) {
  const query = new URLSearchParams(options).toString();
  const response = await fetch(path + (query ? "?" + query : ""), { signal: AbortSignal.timeout(DEADLINE_MS) });
  if (response.ok) return response.json();
  let said = response.statusText;
  try {
    said = (await response.json()).error ?? said;
  } catch {
    // no JSON: a proxy answered
  }
  if (response.status === 404 || response.status === 410) throw new Gone(said);
  throw new Error(said);
}

// A run's name may have slashes: it is one part of the path, and the last.
export function runPath(what, run) {
  return `api/${what}/${encodeURIComponent(run)}`;
}
