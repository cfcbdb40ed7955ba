"use strict";
// The curves. uPlot draws each chart on a canvas, and makes a legend that shows the numbers as text.
const DATA = JSON.parse(document.getElementById("data").textContent);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children); // strings become text, never HTML
  return made;
}

function number(value, isShare = false) {
  if (value === null || value === undefined) return "–";
  if (isShare) return `${(100 * value).toFixed(1)}%`;
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(4));
}

(function () {
  const LIGHT = ["#1f5fbf", "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#4d7c0f", "#475569"];
  const DARK = ["#8ab4f8", "#fb923c", "#5eead4", "#c4b5fd", "#facc15", "#f9a8d4", "#bef264", "#cbd5e1"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const axis = document.getElementById("axis");
  const smoothing = document.getElementById("smoothing");
  const charts = document.getElementById("charts");
  const sync = uPlot.sync("charts");
  const variants = [...new Set(DATA.runs.map((run) => run.variant))];
  const single = DATA.runs.length === 1;
  let plots = [];

  const matches = (pattern, name) => {
    const [start, end] = pattern.split("*");
    return end === undefined ? pattern === name : name.startsWith(start) && name.endsWith(end);
  };
  const color = (index) => (dark.matches ? DARK : LIGHT)[index % LIGHT.length];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // mean of the values in a window that ends at each point
  function smoothed(values) {
    const width = Number(smoothing.value);
    if (width < 2) return values;
    return values.map((value, index) => {
      if (value === null) return null;
      const part = values.slice(Math.max(0, index - width + 1), index + 1).filter((each) => each !== null);
      return part.reduce((sum, each) => sum + each, 0) / part.length;
    });
  }

  // curves of a chart: {label, color, x, y, low, high}; low and high are bounds of a band
  function curvesOf(chart) {
    const curves = [];
    DATA.runs.forEach((run) => {
      const shade = (index) => color(single ? index : variants.indexOf(run.variant));
      const names = Object.keys(run.metrics).filter((name) => chart.metrics.some((each) => matches(each, name)));
      const main = names.find((name) => matches(chart.metrics[0], name));
      let count = 0;
      if (chart.has_evaluations) {
        for (const [decoding, made] of Object.entries(run.evaluations)) {
          const label = single ? `evaluated, ${decoding}` : `${run.name}, ${decoding}`;
          curves.push({ label, color: shade(count++), x: made[axis.value], y: made.accuracy,
            low: single ? made.low : null, high: single ? made.high : null, width: 2, points: true });
        }
        if (!single && count) return;
      }
      for (const name of single ? names : main ? [main] : []) {
        const label = single ? (chart.has_evaluations ? "sampled in training" : name) : run.name;
        const y = run.metrics[name];
        const isEmpty = y.every((value) => value === null) || (name === "num_unscored" && !y.some(Boolean));
        const isCopy = names.slice(0, names.indexOf(name)).some((other) => String(run.metrics[other]) === String(y));
        if (isEmpty || isCopy) continue; // with a single reward function, `reward` equals its mean
        curves.push({ label, color: shade(count++), x: run.x[axis.value], y: smoothed(y), width: 1.3 });
      }
    });
    return curves;
  }

  // drop points without a position, and make positions increase, as uPlot requires
  function table(curve) {
    const rows = [];
    curve.x.forEach((x, index) => {
      if (x === null || (rows.length && x <= rows[rows.length - 1][0])) return;
      rows.push([x, curve.y[index], curve.low ? curve.low[index] : null, curve.high ? curve.high[index] : null]);
    });
    const columns = [0, 1, 2, 3].map((column) => rows.map((row) => row[column]));
    return curve.low ? columns : columns.slice(0, 2);
  }

  function evaluationMarks(plot) {
    if (!single) return;
    const made = Object.values(DATA.runs[0].evaluations)[0];
    if (!made || made[axis.value].length > 60) return;
    plot.ctx.save();
    plot.ctx.strokeStyle = css("--border");
    plot.ctx.setLineDash([2, 4]);
    for (const x of made[axis.value]) {
      if (x === null || x < plot.scales.x.min || x > plot.scales.x.max) continue;
      const place = plot.valToPos(x, "x", true);
      plot.ctx.beginPath();
      plot.ctx.moveTo(place, plot.bbox.top);
      plot.ctx.lineTo(place, plot.bbox.top + plot.bbox.height);
      plot.ctx.stroke();
    }
    plot.ctx.restore();
  }

  function draw(chart) {
    const curves = curvesOf(chart);
    if (!curves.length) return;
    const series = [{ label: axis.selectedOptions[0].textContent, value: (_, value) => number(value) }];
    const bands = [];
    for (const curve of curves) {
      const show = (_, value) => number(value, chart.is_share);
      series.push({ label: curve.label, stroke: curve.color, width: curve.width, spanGaps: true, value: show,
        points: { show: Boolean(curve.points), size: 5 } });
      if (curve.low) {
        const bound = { isBound: true, stroke: "transparent", spanGaps: true, points: { show: false }, value: show };
        series.push({ ...bound, label: "low" }, { ...bound, label: "high" });
        bands.push({ series: [series.length - 1, series.length - 2], fill: `${curve.color}33` });
      }
    }
    const axes = { stroke: css("--faint"), grid: { stroke: css("--border"), width: 0.5 }, ticks: { show: false } };
    const values = (_, ticks) => ticks.map((tick) => number(tick, chart.is_share));
    const holder = element("div", { class: "chart" });
    const title = element("h3", {}, `${chart.title} `, element("span", {}, chart.unit));
    holder.append(title);
    charts.append(holder);
    const data = uPlot.join(curves.map(table));
    // while the pointer is elsewhere, the legend shows the last numbers
    const ends = data.map((column) => column.findLastIndex((value) => value !== null && value !== undefined));
    const showLast = (plot) => plot.cursor.idx === null && plot.setLegend({ idxs: ends });
    const plot = new uPlot(
      { width: holder.clientWidth - 22, height: 200, series, bands, hooks: { drawClear: [evaluationMarks], ready: [showLast], setCursor: [showLast] },
        scales: { x: { time: false } }, cursor: { sync: { key: sync.key }, drag: { x: true, y: false } },
        axes: [{ ...axes, values: (_, ticks) => ticks.map((tick) => number(tick)), size: 30 }, { ...axes, values, size: 62 }] },
      data, holder);
    plot.root.querySelectorAll(".u-series").forEach((row, index) => { row.hidden = Boolean(series[index].isBound); });
    const last = curves.map((curve) => `${curve.label}: ${number(curve.y[curve.y.length - 1], chart.is_share)}`);
    plot.root.setAttribute("role", "img");
    plot.root.setAttribute("aria-label", `${chart.title}, last values. ${last.slice(0, 12).join("; ")}`);
    sync.sub(plot);
    plots.push({ plot, holder });
  }

  function drawAll() {
    plots.forEach(({ plot }) => plot.destroy());
    plots = [];
    charts.replaceChildren();
    DATA.charts.forEach(draw);
    if (!plots.length) charts.append(element("p", {}, "No update is recorded yet."));
  }

  document.getElementById("reset-zoom").addEventListener("click", drawAll);
  axis.addEventListener("change", drawAll);
  smoothing.addEventListener("input", () => {
    const width = Number(smoothing.value);
    document.getElementById("smoothing-value").textContent = width < 2 ? "off" : `mean of ${width} points`;
    drawAll();
  });
  dark.addEventListener("change", drawAll);
  window.addEventListener("resize", () =>
    plots.forEach(({ plot, holder }) => plot.setSize({ width: holder.clientWidth - 22, height: 200 })));
  const means = Math.max(...DATA.runs.map((run) => run.mean_of));
  if (means > 1) document.getElementById("thinned").textContent = ` Each point is the mean of up to ${means} updates.`;
  drawAll();
})();

// With --live, the page is reloaded when the run has made another update. The browser keeps the scroll position.
if (DATA.refresh) {
  let seen = null;
  setInterval(async () => {
    try {
      const version = await (await fetch("version", { cache: "no-store" })).text();
      if (seen !== null && version !== seen) location.reload();
      seen = version;
    } catch { /* the server has ended, so the page is not reloaded */ }
  }, 1000 * DATA.refresh);
}
