// What was reported, what was left out, and where sketches lie.

import { html, nothing } from "./vendor/lit-html.js";
import { bytes, short, whole } from "./format.js";

export function storage(s) {
  return html`<section aria-labelledby="storage">
    <h2 id="storage">Reports and storage</h2>
    <div class="grid">${shards(s)} ${reports(s)}</div>
  </section>`;
}

function shards(s) {
  const most = Math.max(1, ...s.shard.map((shard) => shard.sketched));
  return html`<div class="card">
    <p><b>${bytes(s.memory_bytes)}</b> of table and sketches, index generation ${whole(s.refreshes)}</p>
    ${s.shard.map(
      (shard) => html`<div class="row">
        <span>shard ${shard.shard}</span>
        <div class="bar"><i style="width:${(100 * shard.sketched) / most}%"></i></div>
        <span>${shard.away ? html`<span class="badge bad">away</span>` : `${short(shard.sketched)} sketches`}</span>
      </div>`,
    )}
    ${s.shards_lost ? html`<p class="notice">Shards came back empty ${s.shards_lost} times.</p>` : nothing}
  </div>`;
}

function reports(s) {
  const rejected = Object.entries(s.rejected_rows);
  return html`<div class="card">
    <p><b>${short(s.reported_rows)}</b> reported rows taken in, table version ${whole(s.table_version)}</p>
    ${rejected.length
      ? html`<table>
          <tbody>
            ${rejected.map(([why, count]) => html`<tr><td class="left">left out: ${why.replaceAll("_", " ")}</td><td>${whole(count)}</td></tr>`)}
          </tbody>
        </table>`
      : html`<p class="dim">None was left out.</p>`}
    ${s.weights_version
      ? html`<p class="dim">${s.scorers} scorers, ${short(s.scored_rows)} rows scored by weights of step ${whole(s.weights_step)}</p>`
      : nothing}
    ${s.scorer_error ? html`<p class="notice">${s.scorer_error}</p>` : nothing}
  </div>`;
}
