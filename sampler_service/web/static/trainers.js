// Who trains: each rank, what it got, and how long it waited for it.

import { html, nothing } from "./vendor/lit-html.js";
import { ago, DASH, percent, short, whole } from "./format.js";

// said: the answer about a run; columns: of its history.
export function trainers(said, columns) {
  const s = said.statistics;
  const wait = columns.wait_share?.at(-1);
  const lost = s.leases_expired
    ? `${whole(s.leases_expired)} batches of lost trainers went to others or were dropped.`
    : "No batch of a lost trainer had to be taken back.";
  return html`<section aria-labelledby="trainers">
    <h2 id="trainers">Trainers</h2>
    ${s.ranks.length
      ? html`<div class="card scroll">
          <table>
            <thead>
              <tr>
                <th>rank</th><th class="left">who</th><th>epoch</th><th>holds</th><th>batches</th><th>examples</th>
                <th>examples/s</th><th>waits</th><th>waited</th>
              </tr>
            </thead>
            <tbody>
              ${s.ranks.map((rank) => row(rank, said.ranks[rank.rank]))}
            </tbody>
          </table>
        </div>`
      : html`<p class="empty small">No trainer holds a rank of this run now.</p>`}
    <p class="dim">${wait == null ? "" : `They wait ${percent(wait)} of their time.`} ${lost}</p>
  </section>`;
}

// rates: between the last two looks; none for one that has just joined.
function row(rank, rates) {
  return html`<tr>
    <td>${rank.rank}</td>
    <td class="left">${rank.trainer} ${rank.connected ? nothing : html`<span class="badge bad">gone</span>`}</td>
    <td>${rank.epoch < 0 ? DASH : rank.epoch}</td>
    <td>${rank.held} of ${rank.lead}</td>
    <td>${whole(rank.batches)}</td>
    <td>${whole(rank.examples)}</td>
    <td>${short(rates?.examples_per_s)}</td>
    <td title="share of its time">${percent(rates?.wait_share)}</td>
    <td title="since it joined">${ago(rank.waited_seconds)}</td>
  </tr>`;
}
