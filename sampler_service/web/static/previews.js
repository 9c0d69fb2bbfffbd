// What examples look like: each picture or text is fetched once, a few at a time, and again later when that failed.

import { html, nothing } from "./vendor/lit-html.js";
import { get, read, runPath } from "./api.js";

const AT_ONCE = 3; // a browser has six connections to a host, and the figures need one
const RETRY_MS = 20000;
const MOST = 400; // that are kept

export class Previews {
  constructor(run, changed) {
    this.run = run;
    this.changed = changed;
    this.known = new Map(); // by id: { image }, { text }, { none } or { failed, at }; null while it is fetched
    this.waiting = [];
    this.underWay = 0;
    this.closed = false;
  }

  close() {
    this.closed = true;
    for (const id of this.known.keys()) this.forget(id);
  }

  template(id) {
    const known = this.known.get(id);
    if (known === undefined || (known?.failed && performance.now() - known.at > RETRY_MS)) this.want(id);
    if (known?.none) return nothing;
    if (known?.text != null) return html`<span class="text">${known.text}</span>`;
    if (known?.image) return html`<img src=${known.image} alt="" />`;
    return html`<span class="text dim" title=${known?.failed ?? ""}>${known?.failed ? "no preview" : ""}</span>`;
  }

  want(id) {
    while (this.known.size >= MOST) this.forget(this.known.keys().next().value);
    this.known.set(id, null);
    this.waiting.push(id);
    this.next();
  }

  async next() {
    if (this.closed || this.underWay >= AT_ONCE || !this.waiting.length) return;
    const id = this.waiting.shift();
    this.underWay += 1;
    const found = await this.fetched(id);
    this.underWay -= 1;
    if (this.closed || !this.known.has(id)) {
      if (found.image) URL.revokeObjectURL(found.image);
    } else {
      this.known.set(id, found);
      this.changed();
    }
    this.next();
  }

  async fetched(id) {
    try {
      const response = await get(runPath("preview", this.run), { id });
      if (response.headers.get("Content-Type").startsWith("text/")) return { text: await read(response, "text") };
      return { image: URL.createObjectURL(await read(response, "blob")) };
    } catch (error) {
      return error.kind === "gone" ? { none: true } : { failed: error.message, at: performance.now() };
    }
  }

  forget(id) {
    const known = this.known.get(id);
    if (known?.image) URL.revokeObjectURL(known.image);
    this.known.delete(id);
  }
}
