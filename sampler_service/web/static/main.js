// The page: which view is shown, and the clock that keeps it up to date.
//
// A view has ask() → answer, show(answer), fail(trouble), gone(why) and close().

import { html, render, nothing } from "./vendor/lit-html.js";
import { Failure } from "./api.js";
import { ago } from "./format.js";
import { OverviewView } from "./overview.js";
import { RunView } from "./run.js";
import { headline, loading } from "./states.js";

const PERIOD_MS = 1000;

const header = document.getElementById("header");
const content = document.getElementById("content");

let view = null;
let about = null; // what the server said of itself and of the service, last
let trouble = null; // why there is no answer, and since when
let round = 0; // of the view that is shown: what an earlier one asked is not shown any more
let wake = () => {};

function route() {
  const match = location.hash.match(/^#\/runs\/(.+)$/);
  if (!match) return null;
  try {
    return decodeURIComponent(match[1]);
  } catch {
    return match[1]; // a stray "%": no run is called that, and the service will say so
  }
}

function open() {
  view?.close();
  const run = route();
  view = run === null ? new OverviewView(content) : new RunView(run, content);
  document.title = run === null ? "Gradient sampler" : run + " · Gradient sampler";
  render(loading(), content);
  content.focus({ preventScroll: true });
  scrollTo(0, 0);
  watch(view, ++round);
}

// One question at a time; the next one comes a period after the answer.
async function watch(shown, mine) {
  while (mine === round) {
    try {
      const answer = await shown.ask();
      if (mine !== round) return;
      about = answer;
      trouble = answer.lost ? lostService(answer) : null;
      shown.show(answer, trouble);
    } catch (error) {
      if (mine !== round) return;
      failed(shown, error);
    }
    render(head(), header);
    await pause(document.hidden ? 5 * PERIOD_MS : PERIOD_MS);
  }
}

function failed(shown, error) {
  if (!(error instanceof Failure)) {
    reportError(error); // a fault of this page's own: said in the console
    error = new Failure("refused", error.message);
  }
  about = error.about ?? about;
  if (error.kind === "gone") {
    trouble = null;
    shown.gone(error.message);
    return;
  }
  trouble =
    error.kind === "service"
      ? lostService(error.about)
      : { kind: error.kind, why: error.message, since: trouble?.kind === error.kind ? trouble.since : Date.now() };
  shown.fail(trouble);
}

function lostService({ lost, lost_since, time }) {
  return { kind: "service", why: lost, since: Date.now() - 1000 * (time - lost_since) };
}

function pause(ms) {
  return new Promise((resume) => {
    const timer = setTimeout(resume, ms);
    wake = () => {
      clearTimeout(timer);
      resume();
    };
  });
}

// The seconds are outside of what a screen reader is told: it would be told each of them.
function head() {
  const [state, words] = connection();
  return html`
    <a class="brand" href="#/"><img src="static/icon.svg" alt="" width="24" height="24" /> Gradient sampler</a>
    <span class="where">${about ? html`${about.service}, version ${about.version}` : nothing}</span>
    <span class="state ${state}" title=${trouble?.why ?? ""}>
      <i></i><span role="status">${words}</span>${trouble ? html`<span>${ago((Date.now() - trouble.since) / 1000)}</span>` : nothing}
    </span>
  `;
}

function connection() {
  if (trouble) return ["bad", headline(trouble)];
  return about?.asked ? ["good", "live"] : ["wait", "connecting"];
}

addEventListener("hashchange", open);
document.addEventListener("visibilitychange", () => document.hidden || wake());
content.replaceChildren(); // what stands there for readers without JavaScript
render(head(), header);
open();
