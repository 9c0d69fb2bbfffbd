// One run: what it samples and why, live.

import { html, render, nothing } from "./vendor/lit-html.js";
import { ask, runPath } from "./api.js";
import { bars, lines, map } from "./charts.js";
import { Examples } from "./examples.js";
import { ago, bytes, DASH, percent, ratio, short, whole } from "./format.js";
import { badge, policyWords, standsAside } from "./overview.js";

const SHADES = {
  redundancy: { name: "redundancy", words: "share of a cluster's gradients that their mean explains", of: (c) => c.redundancy },
  loss: { name: "loss", words: "mean loss last reported", of: (c) => c.loss },
  emphasis: {
    name: "draws over size",
    words: "share of the draws over the share of the examples",
    of: (c, total) => (c.size ? c.draw_share / (c.size / total) : null),
  },
};

export class RunView {
  constructor(name, root) {
    this.name = name;
    this.root = root;
    this.columns = {};
    this.generation = -1;
    this.count = 0;
    this.shade = "redundancy";
    this.ended = "";
    this.examples = new Examples(name, () => this.draw());
    this.charts = {
      ratio: lines(
        [
          { name: "variance ratio", key: "variance_ratio" },
          { name: "effective sample size", key: "effective_sample_ratio" },
          { name: "two stages", key: "stage_ratio" },
        ],
        { format: ratio, mark: { at: 1, name: "uniform draws" } },
      ),
      coverage: lines(
        [
          { name: "this epoch", key: "epoch_coverage", area: true },
          { name: "last n draws", key: "window_coverage" },
          { name: "with a sketch", key: "sketch_coverage" },
        ],
        { format: percent, max: 1 },
      ),
      speed: lines(
        [
          { name: "examples/s", key: "examples_per_s", area: true },
          { name: "reported rows/s", key: "reports_per_s" },
        ],
        { format: short },
      ),
      wait: lines([{ name: "waiting", key: "wait_share", area: true }], { format: percent, max: 1 }),
      age: lines(
        [
          { name: "median", key: "median_age_steps" },
          { name: "99th percentile", key: "p99_age_steps" },
        ],
        { format: short },
      ),
      lead: lines(
        [
          { name: "most", key: "lead" },
          { name: "99 % below", key: "p99_lead" },
        ],
        { format: short },
      ),
      weights: bars({ label: between }),
      rates: bars({ label: between }),
      ages: bars({ label: counts }),
      leads: bars({ label: counts }),
      map: map((cluster) => this.pick(cluster)),
    };
  }

  close() {
    for (const chart of Object.values(this.charts)) chart.close();
    this.examples.close();
  }

  async update() {
    const said = await ask(runPath("run", this.name), { generation: this.generation, count: this.count });
    this.take(said.history);
    this.said = said;
    this.ended = "";
    this.examples.previews = said.previews;
    await this.examples.update();
    return { about: said, draw: () => this.draw() };
  }

  // The run was closed while somebody looked: what was seen last stays, and says so.
  gone(why) {
    this.ended = why;
    this.said
      ? this.draw()
      : render(html`<p class="empty">${why}<br /><a href="#/">All runs</a></p>`, this.root);
  }

  take(history) {
    if (!history) return;
    const anew = history.generation !== this.generation || history.start !== this.count;
    for (const [name, values] of Object.entries(history.columns)) {
      this.columns[name] = anew ? values : (this.columns[name] ?? []).concat(values);
    }
    this.generation = history.generation;
    this.count = this.columns.time?.length ?? 0;
  }

  pick(cluster) {
    this.picked = this.picked === cluster ? null : cluster;
    this.draw();
  }

  draw() {
    const { statistics: s } = this.said;
    render(this.template(s), this.root);
    const at = (name) => this.root.querySelector(`[data-chart=${name}]`);
    for (const name of ["ratio", "coverage", "speed", "wait", "age", "lead"]) this.charts[name].draw(at(name), this.columns);
    const detail = s.detail ?? {};
    for (const name of ["weights", "rates", "ages", "leads"]) this.charts[name].draw(at(name), detail[name] ?? {});
    const clusters = detail.clusters ?? [];
    if (clusters.length) this.charts.map.draw(at("map"), this.mapped(clusters, s));
  }

  mapped(clusters, s) {
    const { of } = SHADES[this.shade];
    const total = s.num_examples;
    const values = clusters.map((c) => of(c, total)).filter((value) => value != null);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return {
      clusters,
      shade: (c) => {
        const value = of(c, total);
        return value == null ? null : high > low ? (value - low) / (high - low) : 0.5;
      },
      words: (c) =>
        `<b>cluster ${c.cluster}</b><br>${whole(c.size)} examples (${percent(c.size / total, 1)})<br>` +
        `${percent(c.draw_share, 1)} of the latest draws<br>loss ${short(c.loss)}<br>` +
        `redundancy ${percent(c.redundancy)}`,
    };
  }

  template(s) {
    return html`
      <nav class="crumbs"><a href="#/">All runs</a></nav>
      <div class="title">
        <h1>${s.run}</h1>
        ${this.ended ? html`<span class="badge bad">ended</span>` : badge(s)}
      </div>
      <p class="lead">${reason(s)}</p>
      ${this.ended ? html`<p class="notice">${this.ended} What was seen last is below.</p>` : nothing}
      ${s.batches ? nothing : html`<p class="notice">No batch was asked for yet. The curves begin with the first.</p>`}
      ${tiles(s, this.said, this.columns)} ${this.live()} ${this.draws(s)} ${this.clusters(s)}
      ${this.examples.template()} ${trainers(s, this.columns)} ${storage(s)}
    `;
  }

  live() {
    return html`<section aria-labelledby="live">
      <h2 id="live">Over time</h2>
      <div class="grid">
        ${panel("ratio", "Variance against uniform draws", "Below 1 the policy pays: as if the batch were larger")}
        ${panel("coverage", "Coverage", "Share of the examples that were handed out, or have a sketch")}
        ${panel("speed", "Throughput", "Handed out and reported")}
        ${panel("wait", "Waiting for batches", "Share of their time that trainers wait for this service")}
        ${panel("age", "Age of what is known", "Steps since an example was last reported")}
        ${panel("lead", "Lead", "Batches in the hands of a trainer: how far planning is ahead of reports")}
      </div>
    </section>`;
  }

  draws(s) {
    return html`<section aria-labelledby="draws">
      <h2 id="draws">Draws</h2>
      <div class="grid four">
        ${panel("rates", "Draw rates", "Expected draws of an example in an epoch's worth, as shares of the examples")}
        ${panel("weights", "Loss weights", "Of the latest draws")}
        ${panel("ages", "Ages", "Examples by steps since their last report")}
        ${panel("leads", "Leads", `Batches a trainer held when it got another; at most ${s.max_lead}`)}
      </div>
      <p class="dim">
        ${whole(s.never_drawn)} of ${whole(s.num_examples)} examples were never handed out. Batches by policy:
        ${Object.entries(s.batches_by_policy)
          .map(([policy, count]) => `${policy} ${whole(count)}`)
          .join(", ") || DASH}.
      </p>
    </section>`;
  }

  clusters(s) {
    const clusters = s.detail?.clusters ?? [];
    if (!clusters.length) {
      return html`<section aria-labelledby="clusters">
        <h2 id="clusters">Clusters</h2>
        <p class="empty small">
          ${s.sketch_coverage > 0
            ? `${percent(s.sketch_coverage)} of the examples have a sketch; clusters are made when enough have, for policies that use them.`
            : "No trainer sends sketches. With sampler.GradientSketcher(model) in the loop, gradients are clustered and shown here."}
        </p>
      </section>`;
    }
    const rows = this.picked == null ? clusters.slice(0, 8) : clusters.filter((c) => c.cluster === this.picked);
    return html`<section aria-labelledby="clusters">
      <h2 id="clusters">Clusters</h2>
      <div class="card">
        <div class="title wrap">
          <p class="dim">
            ${clusters.length < s.num_clusters ? `The ${clusters.length} largest of ` : ""}${whole(s.num_clusters)}
            clusters of gradients, made ${s.refreshes === 1 ? "once" : s.refreshes + " times"}. Where two are close,
            their gradients are alike. Size: examples; colour: ${SHADES[this.shade].words}.
          </p>
          <label class="select">
            colour
            <select @change=${(event) => ((this.shade = event.target.value), this.draw())}>
              ${Object.entries(SHADES).map(
                ([key, { name }]) => html`<option value=${key} ?selected=${key === this.shade}>${name}</option>`,
              )}
            </select>
          </label>
        </div>
        <div class="split">
          <div class="chart tall" data-chart="map" role="img" aria-label="map of the clusters; the table has the same"></div>
          <div class="scroll">
            <table>
              <thead>
                <tr><th>cluster</th><th>examples</th><th>draws</th><th>loss</th><th>redundancy</th></tr>
              </thead>
              <tbody>
                ${rows.map(
                  (c) => html`<tr>
                    <td>${c.cluster}</td>
                    <td>${percent(c.size / s.num_examples, 1)}</td>
                    <td>${percent(c.draw_share, 1)}</td>
                    <td>${short(c.loss)}</td>
                    <td>${percent(c.redundancy)}</td>
                  </tr>`,
                )}
              </tbody>
            </table>
            ${this.picked == null
              ? nothing
              : html`<button class="link" @click=${() => this.pick(this.picked)}>show the largest</button>`}
          </div>
        </div>
      </div>
    </section>`;
  }
}

function reason(s) {
  if (standsAside(s)) return html`<b>${s.policy}</b> stands aside: ${s.reason || "it has too little to go by"}`;
  if (s.reason) return html`Sampling by <b>${policyWords(s)}</b>: ${s.reason}`;
  return html`Sampling by <b>${policyWords(s)}</b>${s.unbiased ? ", with unbiased weights" : ", which changes the objective"}.`;
}

function tiles(s, said, columns) {
  // Not known for a moment each time the clusters are made anew.
  const variance = s.variance_ratio ?? columns.variance_ratio?.findLast((value) => value != null);
  const two = s.candidates > 1;
  const tile = (name, value, words) => html`<div class="tile">
    <dt>${name}</dt>
    <dd>${value}</dd>
    <p>${words}</p>
  </div>`;
  return html`<dl class="tiles">
    ${two
      ? tile("two stages", ratio(s.stage_ratio), `of a uniform draw's variance, at ${ratio(s.stage_cost)} of a step's time`)
      : tile("variance ratio", ratio(variance), "of a batch, over uniform draws")}
    ${tile("effective sample", percent(s.effective_sample_ratio), "of the set, by the draw rates")}
    ${tile("epoch", whole(s.epoch), s.progress == null ? `${percent(s.epoch_coverage)} handed out` : `${percent(s.progress)} of the run`)}
    ${tile("examples/s", short(said.examples_per_s), `${short(s.examples)} so far`)}
    ${tile("trainers", whole(s.trainers), `batches in their hands: ${whole(s.leases)}`)}
    ${tile("age", short(s.median_age_steps), `steps; 99 % below ${short(s.p99_age_steps)}`)}
  </dl>`;
}

function panel(name, title, words) {
  return html`<figure class="card">
    <figcaption><b>${title}</b><span class="dim">${words}</span></figcaption>
    <div class="chart" data-chart=${name} role="img" aria-label=${title}></div>
  </figure>`;
}

function trainers(s, columns) {
  const wait = columns.wait_share?.at(-1);
  return html`<section aria-labelledby="trainers">
    <h2 id="trainers">Trainers</h2>
    ${s.ranks.length
      ? html`<div class="card scroll">
          <table>
            <thead>
              <tr><th>rank</th><th class="left">who</th><th>epoch</th><th>holds</th><th>batches</th><th>examples</th><th>waited</th></tr>
            </thead>
            <tbody>
              ${s.ranks.map(
                (rank) => html`<tr>
                  <td>${rank.rank}</td>
                  <td class="left">${rank.trainer} ${rank.connected ? nothing : html`<span class="badge bad">gone</span>`}</td>
                  <td>${rank.epoch < 0 ? DASH : rank.epoch}</td>
                  <td>${rank.held} of ${rank.lead}</td>
                  <td>${whole(rank.batches)}</td>
                  <td>${whole(rank.examples)}</td>
                  <td>${ago(rank.waited_seconds)}</td>
                </tr>`,
              )}
            </tbody>
          </table>
        </div>`
      : html`<p class="empty small">No trainer holds a rank of this run now.</p>`}
    <p class="dim">
      ${wait == null ? "" : `They wait ${percent(wait)} of their time.`} ${whole(s.leases_expired)} batches of lost
      trainers went to others.
    </p>
  </section>`;
}

function storage(s) {
  const most = Math.max(1, ...s.shard.map((shard) => shard.sketched));
  const rejected = Object.entries(s.rejected_rows);
  return html`<section aria-labelledby="storage">
    <h2 id="storage">Reports and storage</h2>
    <div class="grid">
      <div class="card">
        <p><b>${bytes(s.memory_bytes)}</b> of table and sketches</p>
        ${s.shard.map(
          (shard) => html`<div class="row">
            <span>shard ${shard.shard}</span>
            <div class="bar"><i style="width:${(100 * shard.sketched) / most}%"></i></div>
            <span>${shard.away ? html`<span class="badge bad">away</span>` : `${short(shard.sketched)} sketches`}</span>
          </div>`,
        )}
        ${s.shards_lost ? html`<p class="notice">Shards came back empty ${s.shards_lost} times.</p>` : nothing}
      </div>
      <div class="card">
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
      </div>
    </div>
  </section>`;
}

function between(low, high) {
  if (low == null) return "< " + short(high, 2);
  if (high == null) return "≥ " + short(low, 2);
  return short(low, 2);
}

function counts(low, high) {
  if (high == null) return "≥ " + short(low);
  return high - low <= 1 ? short(low) : `${short(low)}–${short(high - 1)}`;
}
