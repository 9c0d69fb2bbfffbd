// Examples that stand out, and why one of them was drawn.

import { html, nothing } from "./vendor/lit-html.js";
import { ask, runPath } from "./api.js";
import { DASH, ratio, short, whole } from "./format.js";

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
    this.why = null;
    this.previews = false;
    this.texts = new Map(); // previews that are texts, by id
    this.askedAt = -Infinity;
    this.closed = false;
  }

  close() {
    this.closed = true;
  }

  // Not with every look: the service goes through all examples for it.
  async update() {
    if (performance.now() - this.askedAt < PERIOD_MS) return;
    this.askedAt = performance.now();
    const order = this.order;
    const { examples } = await ask(runPath("examples", this.run), { order });
    if (order === this.order) this.found = examples;
  }

  async choose(order) {
    this.order = order;
    this.found = null;
    this.askedAt = -Infinity;
    this.changed();
    try {
      await this.update();
    } catch {
      return; // the next look tells
    }
    if (!this.closed) this.changed();
  }

  async explain(id) {
    this.why = { id, waiting: true };
    this.changed();
    this.dialog()?.showModal?.();
    try {
      this.why = await ask(runPath("explain", this.run), { id });
    } catch (error) {
      this.why = { id, error: error.message };
    }
    if (!this.closed) this.changed();
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
      ${this.found === null
        ? html`<p class="empty small">Loading …</p>`
        : this.found.length
          ? html`<ul class="examples">${this.found.map((example) => this.card(example))}</ul>`
          : html`<p class="empty small">${none(this.order)}</p>`}
      <dialog id="why" aria-labelledby="why-title" @click=${(event) => event.target === event.currentTarget && event.currentTarget.close()}>
        ${this.why ? this.explanation(this.why) : nothing}
      </dialog>
    </section>`;
  }

  submit(event) {
    event.preventDefault();
    this.explain(Number(new FormData(event.target).get("id")));
  }

  card(example, similarity = null) {
    return html`<li>
      <button class="card example" @click=${() => this.explain(example.example_id)}>
        ${this.preview(example.example_id)}
        <span class="id">${example.example_id}</span>
        <span class="dim">${similarity === null ? `loss ${short(example.loss)}` : `similarity ${ratio(similarity)}`}</span>
        <span class="dim">drawn ${whole(example.drawn)}×</span>
      </button>
    </li>`;
  }

  preview(id) {
    if (!this.previews) return nothing;
    if (this.texts.has(id)) return html`<span class="text">${this.texts.get(id)}</span>`;
    const source = runPath("preview", this.run) + "?id=" + id;
    return html`<img src=${source} alt="" loading="lazy" @error=${() => this.asText(id, source)} />`;
  }

  // What is no image may be a text.
  async asText(id, source) {
    const response = await fetch(source);
    const text = response.ok && response.headers.get("Content-Type")?.startsWith("text/plain");
    this.texts.set(id, text ? await response.text() : "no preview");
    if (!this.closed) this.changed();
  }

  explanation(why) {
    const close = html`<button class="close" aria-label="close" @click=${() => this.dialog().close()}>×</button>`;
    if (why.waiting || why.error) {
      return html`${close}<h3 id="why-title">Example ${why.id}</h3>
        <p class=${why.error ? "notice" : "dim"}>${why.error ?? "Loading …"}</p>`;
    }
    const { example, neighbours } = why;
    const figure = (name, value) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
    return html`${close}
      <h3 id="why-title">Example ${example.example_id}</h3>
      <div class="why">
        ${this.previews ? html`<div class="large">${this.preview(example.example_id)}</div>` : nothing}
        <div>${why.why.map((sentence) => html`<p>${sentence}</p>`)}</div>
      </div>
      <dl class="figures">
        ${figure("loss", short(example.loss))} ${figure("gradient norm", short(example.norm))}
        ${figure("drawn", whole(example.drawn) + "×")} ${figure("rate", ratio(example.rate))}
        ${figure("cluster", example.cluster < 0 ? DASH : example.cluster)}
      </dl>
      <h4>Nearest in gradient space</h4>
      ${neighbours.length
        ? html`<ul class="examples">${neighbours.map((near) => this.card(near.example, near.similarity))}</ul>`
        : html`<p class="dim">It has no sketch, so nothing is known of its neighbours.</p>`}`;
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
