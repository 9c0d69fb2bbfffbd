// Examples that stand out, and why one of them was drawn.

import { html, nothing } from "./vendor/lit-html.js";
import { ask, runPath } from "./api.js";
import { DASH, ratio, short, whole } from "./format.js";
import { Previews } from "./previews.js";

const ORDERS = {
  hardest: ["Hardest", "Highest loss when last reported"],
  redundant: ["Most redundant", "One of each of the clusters whose gradients are most alike"],
  most_drawn: ["Most drawn", "Handed out most often so far"],
  never_drawn: ["Never drawn", "Not handed out so far"],
};

const PERIOD_MS = 5000;

export class Examples {
  constructor(run, changed) {
    this.run = run;
    this.changed = changed;
    this.order = "hardest";
    this.found = null;
    this.error = ""; // why there is no newer list
    this.why = null; // the example that is explained: { id, answer or error }
    this.previews = null;
    this.askedAt = -Infinity;
    this.closed = false;
  }

  close() {
    this.closed = true;
    this.previews?.close();
  }

  // Look again, but not with every look at the run: the service goes through all examples for it.
  async refresh(previews = this.previews !== null) {
    if (previews) this.previews ??= new Previews(this.run, this.changed);
    if (performance.now() - this.askedAt < PERIOD_MS) return;
    this.askedAt = Infinity; // not again before this answer
    const order = this.order;
    let found = this.found;
    let error = "";
    try {
      ({ examples: found } = await ask(runPath("examples", this.run), { order }));
    } catch (failure) {
      error = failure.message;
    }
    if (this.closed || order !== this.order) return;
    this.askedAt = performance.now();
    this.found = found;
    this.error = error;
    this.changed();
  }

  choose(order) {
    this.order = order;
    this.found = null;
    this.error = "";
    this.askedAt = -Infinity;
    this.changed();
    this.refresh();
  }

  async explain(id) {
    this.why = { id };
    this.changed();
    if (!this.dialog().open) this.dialog().showModal();
    let said;
    try {
      said = { answer: await ask(runPath("explain", this.run), { id }) };
    } catch (failure) {
      said = { error: failure.message };
    }
    if (this.closed || this.why.id !== id) return; // another one was chosen meanwhile
    this.why = { id, ...said };
    this.changed();
  }

  dialog() {
    return document.getElementById("why");
  }

  template() {
    const [, words] = ORDERS[this.order];
    return html`<section aria-labelledby="examples">
      <h2 id="examples">Examples</h2>
      <div class="title wrap">
        <div class="tabs" role="group" aria-label="which examples">
          ${Object.entries(ORDERS).map(
            ([order, [name]]) =>
              html`<button aria-pressed=${order === this.order} @click=${() => this.choose(order)}>${name}</button>`,
          )}
        </div>
        <form class="find" @submit=${(event) => this.submit(event)}>
          <label>example <input name="id" inputmode="numeric" pattern="[0-9]+" required placeholder="id" /></label>
          <button>Why?</button>
        </form>
      </div>
      <p class="dim">${words}. Choose one to see why it was drawn as often as it was.</p>
      ${this.error ? html`<p class="notice">There is no new list of examples: ${this.error}</p>` : nothing} ${this.list()}
      <dialog id="why" aria-labelledby="why-title" @click=${(event) => event.target === event.currentTarget && event.currentTarget.close()}>
        ${this.why ? this.explanation(this.why) : nothing}
      </dialog>
    </section>`;
  }

  list() {
    if (this.found === null) return this.error ? nothing : html`<p class="empty small">Loading …</p>`;
    if (!this.found.length) return html`<p class="empty small">${none(this.order)}</p>`;
    return html`<ul class="examples">${this.found.map((example) => this.card(example))}</ul>`;
  }

  submit(event) {
    event.preventDefault();
    this.explain(new FormData(event.target).get("id"));
  }

  card(example, similarity = null) {
    return html`<li>
      <button class="card example" @click=${() => this.explain(example.example_id)}>
        ${this.previews?.template(example.example_id) ?? nothing}
        <span class="id">${example.example_id}</span>
        <span class="dim">${similarity === null ? `loss ${short(example.loss)}` : `similarity ${ratio(similarity)}`}</span>
        <span class="dim">drawn ${whole(example.drawn)}×</span>
      </button>
    </li>`;
  }

  explanation(why) {
    const close = html`<button class="close" aria-label="close" @click=${() => this.dialog().close()}>×</button>`;
    if (!why.answer) {
      return html`${close}<h3 id="why-title">Example ${why.id}</h3>
        <p class=${why.error ? "notice" : "dim"}>${why.error ?? "Loading …"}</p>`;
    }
    const { example, neighbours, no_neighbours: without, why: sentences } = why.answer;
    const figure = (name, value) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
    return html`${close}
      <h3 id="why-title">Example ${example.example_id}</h3>
      <div class="why">
        ${this.previews ? html`<div class="large">${this.previews.template(example.example_id)}</div>` : nothing}
        <div>${sentences.map((sentence) => html`<p>${sentence}</p>`)}</div>
      </div>
      <dl class="figures">
        ${figure("loss", short(example.loss))} ${figure("gradient norm", short(example.norm))}
        ${figure("drawn", whole(example.drawn) + "×")} ${figure("rate", ratio(example.rate))}
        ${figure("cluster", example.cluster < 0 ? DASH : example.cluster)}
      </dl>
      <h4>Nearest in gradient space</h4>
      ${neighbours.length
        ? html`<ul class="examples">${neighbours.map((near) => this.card(near.example, near.similarity))}</ul>`
        : html`<p class="dim">${without}</p>`}`;
  }
}

function none(order) {
  return {
    hardest: "No loss was reported yet.",
    redundant: "There are no clusters yet.",
    most_drawn: "Nothing was handed out yet.",
    never_drawn: "Every example was handed out at least once.",
  }[order];
}
