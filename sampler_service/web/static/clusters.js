// The clusters of a run: a map of them, and a table that has the same for readers without eyes or a mouse.

import { html, nothing } from "./vendor/lit-html.js";
import { dot, map } from "./charts.js";
import { DASH, percent, ratio, short, whole } from "./format.js";

const SHADES = {
  redundancy: {
    name: "redundancy",
    words: "share of a cluster's gradients that their mean explains",
    of: (c) => c.redundancy,
    format: percent,
  },
  loss: { name: "loss", words: "mean loss last reported", of: (c) => c.loss, format: short },
  scatter: {
    name: "scatter",
    words: "mean squared distance of a cluster's sketches to their mean",
    of: (c) => c.scatter,
    format: short,
  },
  emphasis: {
    name: "draws over size",
    words: "share of the draws over the share of the examples",
    of: (c, total) => (c.size ? c.draw_share / (c.size / total) : null),
    format: (value) => (value == null ? DASH : ratio(value) + "×"),
  },
};

const COLUMNS = [
  ["cluster", "cluster", (c) => c.cluster],
  ["size", "examples", (c) => c.size],
  ["draws", "draws", (c) => c.draw_share],
  ["loss", "loss", (c) => c.loss],
  ["scatter", "scatter", (c) => c.scatter],
  ["redundancy", "redundancy", (c) => c.redundancy],
];

export class Clusters {
  constructor(changed) {
    this.changed = changed;
    this.shade = "redundancy";
    this.picked = null;
    this.by = "size";
    this.rising = false;
    this.map = map((cluster) => this.pick(cluster));
  }

  close() {
    this.map.close();
  }

  draw(root, s) {
    const clusters = s.detail?.clusters ?? [];
    if (clusters.length) this.map.draw(root.querySelector("[data-chart=map]"), this.mapped(clusters, s));
  }

  pick(cluster) {
    this.picked = this.picked === cluster ? null : cluster;
    this.changed();
    // In its box: the page itself stays where it is.
    const row = document.getElementById(`cluster-${cluster}`);
    const box = row.closest(".long");
    const [above, below] = [row.offsetTop - row.offsetHeight, row.offsetTop + row.offsetHeight - box.clientHeight];
    box.scrollTop = Math.max(below, Math.min(box.scrollTop, above));
  }

  sort(by) {
    this.rising = this.by === by ? !this.rising : by === "cluster";
    this.by = by;
    this.changed();
  }

  sorted(clusters) {
    const [, , of] = COLUMNS.find(([key]) => key === this.by);
    const sign = this.rising ? 1 : -1;
    // What is not known comes last, whichever way.
    return clusters.toSorted((a, b) => {
      const [x, y] = [of(a), of(b)];
      if (x == null || y == null) return (x == null) - (y == null);
      return sign * (x - y) || a.cluster - b.cluster;
    });
  }

  mapped(clusters, s) {
    const { of, low, high } = this.range(clusters, s);
    const total = s.num_examples - s.deleted;
    return {
      clusters,
      picked: this.picked,
      shade: (c) => {
        const value = of(c, total);
        return value == null ? null : high > low ? (value - low) / (high - low) : 0.5;
      },
      words: (c) =>
        `<b>cluster ${c.cluster}</b><br>${whole(c.size)} examples (${percent(c.size / total, 1)})<br>` +
        `${percent(c.draw_share, 1)} of the latest draws<br>loss ${short(c.loss)}<br>scatter ${short(c.scatter)}<br>` +
        `redundancy ${percent(c.redundancy)}`,
    };
  }

  range(clusters, s) {
    const { of, format } = SHADES[this.shade];
    const values = clusters.map((c) => of(c, s.num_examples - s.deleted)).filter((value) => value != null);
    return { of, format, low: Math.min(...values), high: Math.max(...values), known: values.length > 0 };
  }

  template(s) {
    const clusters = s.detail?.clusters ?? [];
    return html`<section aria-labelledby="clusters">
      <h2 id="clusters">Clusters</h2>
      ${clusters.length ? this.card(clusters, s) : html`<p class="empty small">${none(s)}</p>`}
    </section>`;
  }

  card(clusters, s) {
    return html`<div class="card">
      <div class="title wrap">
        <p class="dim">
          ${clusters.length < s.num_clusters ? `The ${clusters.length} largest of ` : ""}${whole(s.num_clusters)}
          clusters of gradients, generation ${whole(s.refreshes)} of the index. Where two are close, their gradients are
          alike.
        </p>
        <label class="select">
          colour
          <select @change=${(event) => ((this.shade = event.target.value), this.changed())}>
            ${Object.entries(SHADES).map(
              ([key, { name }]) => html`<option value=${key} ?selected=${key === this.shade}>${name}</option>`,
            )}
          </select>
        </label>
      </div>
      <div class="split">
        <div>
          <div
            class="chart tall"
            data-chart="map"
            role="img"
            aria-label=${"Map of the clusters: " + this.map.says({ clusters })}
          ></div>
          ${this.legend(clusters, s)}
        </div>
        ${this.table(clusters, s)}
      </div>
    </div>`;
  }

  legend(clusters, s) {
    const { low, high, format, known } = this.range(clusters, s);
    const most = Math.max(...clusters.map((c) => c.size));
    const circle = (share) =>
      html`<span class="circle"><i style="width:${dot(share)}px;height:${dot(share)}px"></i>${short(Math.round(share * most))}</span>`;
    return html`<div class="legend">
      <p><b>Colour</b> ${SHADES[this.shade].words}</p>
      ${known ? html`<p class="shades"><span>${format(low)}</span><i></i><span>${format(high)}</span></p>` : nothing}
      <p><b>Size</b> examples</p>
      <p class="circles">${[0.04, 0.25, 1].map(circle)}</p>
    </div>`;
  }

  table(clusters, s) {
    const order = (key) => (key !== this.by ? "none" : this.rising ? "ascending" : "descending");
    return html`<div class="scroll long" tabindex="0" role="group" aria-label="table of the clusters">
      <table class="sortable">
        <thead>
          <tr>
            ${COLUMNS.map(
              ([key, name]) =>
                html`<th aria-sort=${order(key)}>
                  <button @click=${() => this.sort(key)}>${name}<span aria-hidden="true">${key === this.by ? (this.rising ? " ↑" : " ↓") : ""}</span></button>
                </th>`,
            )}
          </tr>
        </thead>
        <tbody>
          ${this.sorted(clusters).map(
            (c) => html`<tr id="cluster-${c.cluster}" class=${c.cluster === this.picked ? "picked" : ""}>
              <td>
                <button class="link" aria-pressed=${c.cluster === this.picked} aria-label="cluster ${c.cluster}, show on the map"
                  @click=${() => this.pick(c.cluster)}>${c.cluster}</button>
              </td>
              <td title="${whole(c.size)} examples">${percent(c.size / (s.num_examples - s.deleted), 1)}</td>
              <td>${percent(c.draw_share, 1)}</td>
              <td>${short(c.loss)}</td>
              <td>${short(c.scatter)}</td>
              <td>${percent(c.redundancy)}</td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
  }
}

function none(s) {
  return s.sketch_coverage > 0
    ? `${percent(s.sketch_coverage)} of the examples have a sketch; clusters are made when enough have, for policies that use them.`
    : "No trainer sends sketches. With sampler.GradientSketcher(model) in the loop, gradients are clustered and shown here.";
}
