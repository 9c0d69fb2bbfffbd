// One run: what it samples and why, live.

import { html, render, nothing } from "./vendor/lit-html.js";
import { ask, runPath } from "./api.js";
import { bars, lines } from "./charts.js";
import { Clusters } from "./clusters.js";
import { Examples } from "./examples.js";
import { DASH, percent, ratio, short, whole } from "./format.js";
import { badge, policyWords, standsAside } from "./overview.js";
import { ended, nothingYet, notice } from "./states.js";
import { storage } from "./storage.js";
import { trainers } from "./trainers.js";

export class RunView {
  constructor(name, root) {
    this.name = name;
    this.root = root;
    this.said = null; // the last answer
    this.trouble = null; // why there is none now
    this.ended = ""; // why there will be none
    this.columns = {};
    this.generation = -1;
    this.count = 0;
    this.clusters = new Clusters(() => this.draw());
    this.examples = new Examples(name, () => this.render());
    this.curves = {
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
      wait: lines([{ name: "waiting", key: "wait_share", area: true }], { format: percent, step: 0.01 }),
      age: lines(
        [
          { name: "median", key: "median_age_steps" },
          { name: "99 % at most", key: "p99_age_steps" },
        ],
        { format: short },
      ),
      lead: lines(
        [
          { name: "most now", key: "lead" },
          { name: "median", key: "median_lead" },
          { name: "99 % at most", key: "p99_lead" },
        ],
        { format: short, step: 1 },
      ),
    };
    this.histograms = {
      rates: bars({ label: between }),
      weights: bars({ label: between }),
      ages: bars({ label: counts }),
      leads: bars({ label: counts }),
    };
  }

  close() {
    for (const chart of Object.values({ ...this.curves, ...this.histograms })) chart.close();
    this.clusters.close();
    this.examples.close();
  }

  ask() {
    return ask(runPath("run", this.name), { generation: this.generation, count: this.count });
  }

  show(said, trouble) {
    this.said = said;
    this.trouble = trouble;
    this.ended = "";
    this.take(said.history);
    this.draw();
    this.examples.refresh(said.previews);
  }

  fail(trouble) {
    this.trouble = trouble;
    this.said ? this.draw() : render(nothingYet(trouble), this.root);
  }

  // The run was closed while somebody looked: what was seen last stays, and says so.
  gone(why) {
    this.trouble = null;
    this.ended = why;
    this.said ? this.draw() : render(ended(why), this.root);
  }

  // All points, or those after the ones that are here; others would make time run backwards.
  take(history) {
    if (!history) return;
    const { generation, start, columns } = history;
    if (start === 0) this.columns = columns;
    else if (generation !== this.generation || start !== this.count) return;
    else for (const [name, values] of Object.entries(columns)) this.columns[name] = this.columns[name].concat(values);
    this.generation = generation;
    this.count = this.columns.time?.length ?? 0;
  }

  render() {
    render(this.template(), this.root);
  }

  draw() {
    this.render();
    const s = this.said.statistics;
    const at = (name) => this.root.querySelector(`[data-chart=${name}]`);
    for (const [name, chart] of Object.entries(this.curves)) chart.draw(at(name), this.columns);
    for (const [name, chart] of Object.entries(this.histograms)) chart.draw(at(name), s.detail?.[name] ?? {});
    this.clusters.draw(this.root, s);
  }

  template() {
    const s = this.said.statistics;
    return html`
      <nav class="crumbs"><a href="#/">All runs</a></nav>
      <div class="title">
        <h1>${s.run}</h1>
        ${this.badge(s)}
      </div>
      ${this.ended ? html`<p class="notice">${this.ended} What was seen last is below.</p>` : nothing}
      ${this.trouble ? notice(this.trouble) : nothing}
      <p class="lead">${reason(s)}</p>
      ${s.batches ? nothing : html`<p class="notice">No batch was asked for yet. The curves begin with the first.</p>`}
      ${tiles(s, this.said, this.columns)} ${this.live()} ${this.draws(s)} ${this.clusters.template(s)}
      ${this.examples.template()} ${trainers(this.said, this.columns)} ${storage(s)}
    `;
  }

  badge(s) {
    if (this.ended) return html`<span class="badge bad">ended</span>`;
    if (this.trouble?.kind === "run") return html`<span class="badge bad">does not answer</span>`;
    return badge(s);
  }

  live() {
    const panel = (name, title, words) => figure(name, title, words, this.curves[name].says(this.columns));
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
    const panel = (name, title, words) =>
      figure(name, title, words, this.histograms[name].says(s.detail?.[name] ?? {}));
    return html`<section aria-labelledby="draws">
      <h2 id="draws">Draws</h2>
      <div class="grid four">
        ${panel("rates", "Draw rates", "Expected draws of an example in an epoch's worth, as shares of the examples")}
        ${panel("weights", "Loss weights", "Of the latest draws")}
        ${panel("ages", "Ages", "Examples by steps since their last report")}
        ${panel("leads", "Leads", `Batches a trainer held when it got another; at most ${s.max_lead}`)}
      </div>
      <p class="dim">
        ${whole(s.never_drawn)} of ${whole(s.num_examples - s.deleted)} examples were never handed
        out${s.deleted ? `, ${whole(s.deleted)} others were deleted` : ""}. Batches by policy:
        ${Object.entries(s.batches_by_policy)
          .map(([policy, count]) => `${policy} ${whole(count)}`)
          .join(", ") || DASH}.
      </p>
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
    ${tile("trainers", whole(s.trainers), s.leases === 1 ? "1 batch in hand" : `${whole(s.leases)} batches in hand`)}
    ${tile("age", short(s.median_age_steps), `steps; 99 % at most ${short(s.p99_age_steps)}`)}
  </dl>`;
}

// What the chart shows is in its label too, in words.
function figure(name, title, words, said) {
  return html`<figure class="card">
    <figcaption><b>${title}</b><span class="dim">${words}</span></figcaption>
    <div class="chart" data-chart=${name} role="img" aria-label="${title}: ${said}"></div>
  </figure>`;
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
