// What the server is asked. Every answer has a deadline; a failure says whose it is.

const DEADLINE_MS = 8000;

// No answer. `kind` is who failed:
//   page     this page's server, or what is between it and here
//   service  the service behind it; `about` is what the server knows of it
//   run      one run of a service that answers otherwise
//   gone     nobody: there is no such thing (any more)
//   refused  nobody: the question can't be answered
export class Failure extends Error {
  constructor(kind, why, about = null) {
    super(why);
    this.kind = kind;
    this.about = about;
  }
}

export async function ask(path, options = {}) {
  return read(await get(path, options), "json");
}

// The response itself, for what is no JSON.
export async function get(path, options = {}) {
  const query = new URLSearchParams(options).toString();
  let response;
  try {
    response = await fetch(path + (query ? "?" + query : ""), { signal: AbortSignal.timeout(DEADLINE_MS) });
  } catch (error) {
    throw lost(error);
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  // Without our words a proxy answered.
  if (!said?.error) throw new Failure("page", `${response.status} ${response.statusText}`.trim());
  if (response.status === 404 || response.status === 410) throw new Failure("gone", said.error);
  if (response.status === 503) throw new Failure(said.lost ? "service" : "run", said.error, said);
  throw new Failure("refused", said.error);
}

// The body as "json", "text" or "blob".
export async function read(response, form) {
  try {
    return await response[form]();
  } catch (error) {
    throw lost(error);
  }
}

function lost(error) {
  const late = error.name === "TimeoutError";
  return new Failure("page", late ? `no answer within ${DEADLINE_MS / 1000} s` : error.message);
}

// A run's name may have slashes: it is one part of the path, and the last.
export function runPath(what, run) {
  return `api/${what}/${encodeURIComponent(run)}`;
}
