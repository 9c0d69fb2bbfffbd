// The page: which view is shown, and the clock that keeps it up to date.

import { html, render, nothing } from "./vendor/lit-html.js";
import { ask, Gone } from "./api.js";
import { ago } from "./format.js";
import { overview } from "./overview.js";
import { RunView } from "./run.js";

const PERIOD_MS = 1000;

const header = document.getElementById("header");
const content = document.getElementById("content");

let view = null;
let about = null; // what the server said of itself and of the service, last
let failed = null; // why the server did not answer, and since when
let round = 0;

function route() {
  const match = location.hash.match(/^#\/runs\/(.+)$/);
  return match ? decodeURIComponent(match[1]) : null;
}

function show() {
  view?.close?.();
  const run = route();
  view = run === null ? new Overview() : new RunView(run, content);
  document.title = run === null ? "Gradient sampler" : run + " · Gradient sampler";
  render(html`<p class="empty">Loading …</p>`, content);
  content.focus({ preventScroll: true });
  scrollTo(0, 0);
  tick();
}

class Overview {
  async update() {
    const said = await ask("api/runs");
    return { about: said, draw: () => render(overview(said.runs), content) };
  }
}

// One look at a time; the next one comes a period after the answer, or at once when another view is opened.
async function tick() {
  const mine = ++round;
  const shown = view;
  while (mine === round) {
    try {
      const { about: said, draw } = await shown.update();
      if (mine !== round) return;
      about = said;
      failed = null;
      draw();
    } catch (error) {
      if (mine !== round) return;
      if (error instanceof Gone) {
        failed = null;
        shown.gone ? shown.gone(error.message) : render(ended(error.message), content);
      } else {
        failed = { why: error.message, since: failed?.since ?? Date.now() };
      }
    }
    render(head(), header);
    await new Promise((resume) => setTimeout(resume, document.hidden ? 5 * PERIOD_MS : PERIOD_MS));
  }
}

function ended(why) {
  return html`<p class="empty">${why}<br /><a href="#/">All runs</a></p>`;
}

function head() {
  const [state, words] = connection();
  return html`
    <a class="brand" href="#/"><img src="static/icon.svg" alt="" width="24" height="24" /> Gradient sampler</a>
    <span class="where">${about ? html`${about.service} <span class="dim">${about.version}</span>` : nothing}</span>
    <span class="state ${state}" role="status" title=${words}><i></i>${words}</span>
  `;
}

function connection() {
  if (failed) {
    return ["bad", `page lost for ${ago((Date.now() - failed.since) / 1000)}, trying on`];
  }
  if (!about) return ["wait", "connecting"];
  if (about.lost) return ["bad", `service lost for ${ago(about.time - about.lost_since)}, trying on`];
  return ["good", "live"];
}

addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => document.hidden || tick());
content.replaceChildren(); // what stands there for readers without JavaScript
render(head(), header);
show();
