// All runs at a glance.

import { html, render, svg, nothing } from "./vendor/lit-html.js";
import { ask } from "./api.js";
import { bytes, percent, ratio, short, whole } from "./format.js";
import { loading, nothingYet, notice } from "./states.js";

export class OverviewView {
  constructor(root) {
    this.root = root;
    this.said = null;
  }

  close() {}

  ask() {
    return ask("api/runs");
  }

  show(said, trouble) {
    this.said = said;
    render(overview(said, trouble), this.root);
  }

  fail(trouble) {
    const said = this.said ?? { runs: [] };
    render(overview(said, trouble), this.root);
  }

  gone(why) {
    this.fail({ kind: "page", why }); // the list itself is never gone: another server answers there
  }
}

function overview(said, trouble) {
  if (said.runs.length) return html`${trouble ? notice(trouble) : nothing} ${list(said.runs)}`;
  if (trouble) return nothingYet(trouble);
  if (!said.asked) return loading("Asking the service for its runs …");
  return html`<div class="empty">
    <h1>No run yet</h1>
    <p>Point a DataLoader at this service, and its run shows here:</p>
    <pre><code>loader = sampler.attach(loader, "${reachable(said.service)}", run="my-run")</code></pre>
  </div>`;
}

// Where a trainer finds the service: what is on this page's server is on the host that the reader has typed.
function reachable(service) {
  const [, host, port] = service.match(/^(.*):(\d+)$/);
  return ["127.0.0.1", "localhost", "[::1]"].includes(host) ? `${location.hostname}:${port}` : service;
}

function list(runs) {
  const sum = (key) => runs.reduce((total, run) => total + (run[key] ?? 0), 0);
  const trainers = sum("trainers");
  return html`
    <h1>${runs.length === 1 ? "One run" : `${runs.length} runs`}</h1>
    <p class="dim">
      ${trainers === 1 ? "1 trainer" : `${whole(trainers)} trainers`}, ${short(sum("examples_per_s"))} examples/s,
      ${bytes(sum("memory_bytes"))} of tables and sketches
    </p>
    <ul class="runs">
      ${runs.map(card)}
    </ul>
  `;
}

function card(run) {
  const figure = (name, value) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
  const variance = run.variance_ratio ?? run.stage_ratio ?? run.last_ratio;
  return html`<li>
    <a class="card run" href="#/runs/${encodeURIComponent(run.run)}">
      <div class="title">
        <h2>${run.run}</h2>
        ${badge(run)}
      </div>
      <p class="dim">${policyWords(run)}</p>
      <dl class="figures">
        ${figure("examples/s", short(run.examples_per_s))}
        ${variance == null ? nothing : figure("variance ratio", ratio(variance))}
        ${figure("epoch", whole(run.epoch))} ${figure("trainers", whole(run.trainers))}
      </dl>
      ${spark(run.recent)}
      <div class="bar" title="share of the examples that this epoch has handed out">
        <i style="width:${100 * (run.epoch_coverage ?? 0)}%"></i>
      </div>
      <p class="dim small">${percent(run.epoch_coverage)} of ${short(run.num_examples == null ? null : run.num_examples - run.deleted)} examples this epoch</p>
    </a>
  </li>`;
}

export function badge(run) {
  if (run.unanswered_since != null) return html`<span class="badge bad">does not answer</span>`;
  if (run.shards_away) return html`<span class="badge bad">${run.shards_away} of ${run.shards} shards away</span>`;
  if (!run.batches) return html`<span class="badge">no batch yet</span>`;
  if (!run.trainers) return html`<span class="badge">no trainer connected</span>`;
  if (standsAside(run)) return html`<span class="badge warn">stands aside</span>`;
  return html`<span class="badge good">sampling</span>`;
}

export function standsAside(run) {
  return run.active_policy === "shuffle" && !["shuffle", "auto"].includes(run.policy);
}

export function policyWords(run) {
  if (!run.active_policy || run.active_policy === run.policy) return run.policy;
  return `${run.policy}, at present ${run.active_policy}`;
}

function spark(values) {
  const known = values.filter((value) => value != null);
  if (known.length < 2) return html`<div class="spark"></div>`;
  const most = Math.max(...known, 1e-9);
  const points = values.map((value, i) => [
    (100 * i) / (values.length - 1),
    value == null ? null : 24 - (22 * value) / most,
  ]);
  const path = points
    .filter(([, y]) => y != null)
    .map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`)
    .join(" ");
  return html`<svg class="spark" viewBox="0 0 100 26" preserveAspectRatio="none" aria-hidden="true">
    ${svg`<polyline points=${path} />`}
  </svg>`;
}
