// All runs at a glance.

import { html, svg, nothing } from "./vendor/lit-html.js";
import { percent, ratio, short, whole } from "./format.js";

export function overview(runs) {
  if (!runs.length) {
    return html`<div class="empty">
      <h1>No run yet</h1>
      <p>Point a DataLoader at this service, and its run shows here:</p>
      <pre><code>loader = sampler.attach(loader, "${location.hostname}:50051", run="my-run")</code></pre>
    </div>`;
  }
  return html`
    <h1>${runs.length === 1 ? "One run" : `${runs.length} runs`}</h1>
    <ul class="runs">
      ${runs.map(card)}
    </ul>
  `;
}

function card(run) {
  return html`<li>
    <a class="card run" href="#/runs/${encodeURIComponent(run.run)}">
      <div class="title">
        <h2>${run.run}</h2>
        ${badge(run)}
      </div>
      <p class="dim">${policyWords(run)}</p>
      <dl class="figures">
        <div><dt>examples/s</dt><dd>${short(run.examples_per_s)}</dd></div>
        <div><dt>variance ratio</dt><dd>${ratio(run.variance_ratio ?? run.stage_ratio)}</dd></div>
        <div><dt>epoch</dt><dd>${whole(run.epoch)}</dd></div>
        <div><dt>trainers</dt><dd>${whole(run.trainers)}</dd></div>
      </dl>
      ${spark(run.recent)}
      <div class="bar" title="share of the examples that this epoch has handed out">
        <i style="width:${100 * (run.epoch_coverage ?? 0)}%"></i>
      </div>
      <p class="dim small">${percent(run.epoch_coverage)} of ${short(run.num_examples)} examples this epoch</p>
    </a>
  </li>`;
}

export function badge(run) {
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
  if (known.length < 2) return nothing;
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
