// What is said when there is no answer: in the header, above what was seen last, or in its place.

import { html } from "./vendor/lit-html.js";

// By who failed; see Failure.
const WORDS = {
  page: { short: "page lost, trying on", long: "The server of this page does not answer" },
  service: { short: "service lost, trying on", long: "The service does not answer" },
  run: { short: "run does not answer, trying on", long: "This run does not answer" },
  refused: { short: "error, trying on", long: "The server of this page answered with an error" },
};

// A trouble is { kind, why, since }, since in milliseconds of this machine's clock.
export function headline(trouble) {
  return WORDS[trouble.kind].short;
}

export function notice(trouble) {
  return html`<div class="notice">
    <p><b>${WORDS[trouble.kind].long}.</b> What was seen last is below.</p>
    <p class="dim small">${trouble.why}</p>
  </div>`;
}

export function nothingYet(trouble) {
  return html`<div class="empty">
    <h1>${WORDS[trouble.kind].long}</h1>
    <p>${trouble.why}</p>
    <p>Nothing was seen yet. This page keeps trying.</p>
  </div>`;
}

export function loading(words = "Loading …") {
  return html`<p class="empty">${words}</p>`;
}

export function ended(why) {
  return html`<div class="empty">
    <h1>No such run</h1>
    <p>${why}</p>
    <p><a href="#/">All runs</a></p>
  </div>`;
}
