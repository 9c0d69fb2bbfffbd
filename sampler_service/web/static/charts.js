// Charts: ECharts with the page's colours. Each keeps its element and is told what to show.

const charts = new Set();

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

export function palette() {
  return ["c1", "c2", "c3", "c4"].map(color);
}

// A chart in an element, made when it is first drawn; `draw(element, data)` shows data, `says(data)` tells it in words.
class Chart {
  constructor(options, says) {
    this.options = options;
    this.says = says;
    charts.add(this);
  }

  draw(element, data) {
    if (!element) return;
    this.data = data;
    if (this.element !== element) {
      this.chart?.dispose();
      this.element = element;
      this.chart = echarts.init(element, null, { renderer: "canvas" });
      this.watch?.disconnect();
      this.watch = new ResizeObserver(() => this.chart.resize());
      this.watch.observe(element);
      this.onClick && this.chart.on("click", this.onClick);
    }
    this.chart.setOption(this.options(data), { replaceMerge: ["series"], lazyUpdate: true });
  }

  close() {
    this.watch?.disconnect();
    this.chart?.dispose();
    charts.delete(this);
  }
}

// Other colours at dusk: draw again.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of charts) if (chart.element) chart.draw(chart.element, chart.data);
});

function axis(extra = {}) {
  return {
    axisLine: { show: false },
    axisTick: { show: false },
    axisLabel: { color: color("dim"), fontSize: 11, hideOverlap: true },
    nameTextStyle: { color: color("dim"), fontSize: 11 },
    splitLine: { lineStyle: { color: color("line") } },
    ...extra,
  };
}

function base(extra) {
  return {
    animation: false,
    color: palette(),
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 8, right: 14, top: 12, bottom: 6, containLabel: true },
    tooltip: tooltip(),
    ...extra,
  };
}

function tooltip(extra = {}) {
  return {
    trigger: "axis",
    confine: true,
    backgroundColor: color("card"),
    borderColor: color("line"),
    textStyle: { color: color("text"), fontSize: 12 },
    axisPointer: { lineStyle: { color: color("dim") } },
    ...extra,
  };
}

// Curves over time. `curves`: [{ name, key, area? }]; data: columns of the history; step: the least between two lines
// of the grid; mark: a named level that is always in sight.
export function lines(curves, { format, max = null, step = 0, mark = null } = {}) {
  const words = (value) => format(value); // ECharts gives more than the value
  const known = (columns) => curves.filter(({ key }) => columns[key]?.some((value) => value != null));
  const says = (columns) =>
    known(columns)
      .map(({ name, key }) => `${name} ${format(columns[key].findLast((value) => value != null))}`)
      .join(", ") || "nothing is known yet";
  return new Chart((columns) => {
    const shown = known(columns);
    const times = (columns.time ?? []).map((seconds) => 1000 * seconds);
    const top = Math.max(0, ...shown.flatMap(({ key }) => columns[key].map((value) => value ?? 0)));
    const below = mark !== null && top <= mark.at; // the mark is then the highest line but one
    return base({
      tooltip: tooltip({ valueFormatter: words }),
      legend: legend(shown.length > 1),
      grid: { left: 8, right: 14, top: shown.length > 1 ? 30 : 12, bottom: 6, containLabel: true },
      xAxis: axis({ type: "time", splitLine: { show: false }, splitNumber: 4 }),
      yAxis: axis({
        type: "value",
        min: 0,
        max: below ? 1.25 * mark.at : max,
        interval: below ? 0.25 * mark.at : max === 1 ? 0.25 : undefined,
        minInterval: step,
        axisLabel: { ...axis().axisLabel, formatter: words, showMaxLabel: !below },
        splitNumber: 3,
      }),
      series: shown.map(({ name, key, area }, i) => ({
        name,
        type: "line",
        color: palette()[curves.findIndex((curve) => curve.key === key)],
        connectNulls: true,
        showSymbol: times.length < 2,
        symbolSize: 4,
        lineStyle: { width: 1.8 },
        areaStyle: area ? { opacity: 0.12 } : undefined,
        data: times.map((time, at) => [time, columns[key]?.[at] ?? null]),
        markLine:
          mark && i === 0
            ? {
                silent: true,
                symbol: "none",
                lineStyle: { color: color("dim"), type: "dashed", width: 1 },
                label: { formatter: mark.name, color: color("dim"), fontSize: 11, position: "insideStartTop" },
                data: [{ yAxis: mark.at }],
              }
            : undefined,
      })),
    });
  }, says);
}

function legend(show) {
  return {
    show,
    top: 0,
    left: 0,
    icon: "roundRect",
    itemWidth: 12,
    itemHeight: 3,
    textStyle: { color: color("dim"), fontSize: 11 },
  };
}

// Shares between edges; data: { edges, counts }. Empty bins at both ends are left out.
export function bars({ label }) {
  const says = (data) => {
    const bins = binned(data, label);
    if (!bins.length) return "nothing is known yet";
    const most = bins.reduce((a, b) => (b.value > a.value ? b : a));
    const filled = bins.filter((bin) => bin.value > 0);
    return `from ${filled[0].name} to ${filled.at(-1).name}, most (${share(most.value)}) at ${most.name}`;
  };
  return new Chart((data) => {
    const bins = binned(data, label);
    return base({
      tooltip: tooltip({
        axisPointer: { type: "shadow" },
        valueFormatter: share,
      }),
      xAxis: axis({ type: "category", data: bins.map((bin) => bin.name), splitLine: { show: false } }),
      yAxis: axis({
        type: "value",
        splitNumber: 3,
        max: ({ max }) => (max > 0.75 ? 1 : null),
        interval: Math.max(...bins.map((bin) => bin.value), 0) > 0.75 ? 0.25 : undefined,
        axisLabel: { ...axis().axisLabel, formatter: (value) => Math.round(100 * value) + " %" },
      }),
      series: [
        {
          type: "bar",
          barCategoryGap: "12%",
          itemStyle: { borderRadius: [3, 3, 0, 0] },
          data: bins.map((bin) => bin.value),
        },
      ],
    });
  }, says);
}

function binned({ edges = [], counts = [] }, label) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return [];
  const first = Math.max(0, counts.findIndex((count) => count > 0) - 1);
  const last = Math.min(counts.length - 1, counts.findLastIndex((count) => count > 0) + 1);
  return counts.slice(first, last + 1).map((count, i) => ({
    name: label(edges[first + i], edges[first + i + 1]),
    value: count / total,
  }));
}

function share(value) {
  return (100 * value).toFixed(value < 0.01 ? 2 : 1) + " %";
}

// Clusters by where their mean sketch is. Distances from the middle are drawn as square roots: a few lie far out.
// data: { clusters, picked, shade(cluster) → 0 … 1 | null, words(cluster) → html }
export function map(onPick) {
  const says = ({ clusters }) => `${clusters.length} clusters; the table has each of them`;
  const chart = new Chart(({ clusters, picked, shade, words }) => {
    const most = Math.max(1, ...clusters.map((cluster) => cluster.size));
    const [low, high] = [color("shade-low"), color("shade-high")];
    return base({
      grid: { left: 8, right: 8, top: 8, bottom: 8 },
      tooltip: tooltip({ trigger: "item", formatter: ({ data }) => data.words }),
      xAxis: { type: "value", scale: true, show: false },
      yAxis: { type: "value", scale: true, show: false },
      series: [
        {
          type: "scatter",
          data: clusters.map((cluster) => ({
            value: [rooted(cluster.x), rooted(cluster.y)],
            cluster: cluster.cluster,
            words: words(cluster),
            symbolSize: dot(cluster.size / most),
            z: cluster.cluster === picked ? 3 : 2,
            itemStyle: {
              color: blend(low, high, shade(cluster)) ?? color("line"),
              opacity: 0.85,
              borderColor: cluster.cluster === picked ? color("c2") : color("card"),
              borderWidth: cluster.cluster === picked ? 3 : 1,
            },
          })),
        },
      ],
    });
  }, says);
  chart.onClick = ({ data }) => onPick(data.cluster);
  return chart;
}

// Pixels across, for a share of the largest: the area grows with the examples.
export function dot(share) {
  return 8 + 40 * Math.sqrt(share);
}

function rooted(value) {
  return Math.sign(value) * Math.sqrt(Math.abs(value));
}

function blend(low, high, share) {
  if (share == null) return null;
  const [a, b] = [low, high].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const mixed = a.map((part, i) => Math.round(part + (b[i] - part) * Math.min(1, Math.max(0, share))));
  return `rgb(${mixed.join(",")})`;
}
