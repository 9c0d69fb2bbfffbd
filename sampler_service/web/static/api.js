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

export function runPath(run, what = "") {
  return "api/runs/" + run.split("/").map(encodeURIComponent).join("/") + (what ? "/" + what : "");
}
