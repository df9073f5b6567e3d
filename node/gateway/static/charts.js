"use strict";
// Lines over time, by hand: some hundred points each, drawn once a second into one path a line.

const SHOWN_S = 600; // at most
const LEAST_S = 60; // and at least
const WIDTH = 300;
const HEIGHT = 100;

function drawLines(id, sums, lines, { isLog = false, format = count, unit = "" }) {
  const chart = $(id);
  const now = sums.length ? sums.at(-1).at_ms : Date.now();
  const values = lines.flatMap(({ of }) => sums.map(of)).filter((value) => value > 0);
  const top = niceTop(Math.max(isLog ? 10 : 5, ...values));
  const shownS = Math.min(SHOWN_S, Math.max(LEAST_S, sums.length ? (now - sums[0].at_ms) / 1000 : 0));
  const low = isLog ? Math.min(1, ...values) : 0;
  const y = (value) => {
    const share = isLog ? (value <= low ? 0 : Math.log(value / low) / Math.log(top / low)) : value / top;
    return (HEIGHT - share * HEIGHT).toFixed(1);
  };
  if (!chart.firstChild) {
    mark(chart, "viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    const box = el("div", { class: "chart-box" });
    chart.replaceWith(box);
    box.append(el("span", { class: "axis" }), el("span", { class: "axis" }), chart, el("p", { class: "time", "aria-hidden": "true" }, el("span"), el("span", {}, "now")));
    for (const at of [0.5, 50, 99.5]) chart.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: at, y2: at }));
    for (const { key } of lines) chart.append(svg("path", { class: `line ${key}` }));
  }
  const paths = chart.querySelectorAll("path");
  lines.forEach(({ of }, n) => {
    let d = "";
    let pen = "M";
    for (const sum of sums) {
      const value = of(sum);
      if (value === null || value === undefined) {
        pen = "M";
        continue;
      }
      d += `${pen}${(WIDTH * (1 - (now - sum.at_ms) / 1000 / shownS)).toFixed(1)} ${y(value)}`;
      pen = "L";
    }
    mark(paths[n], "d", d);
  });
  const [topText, middleText] = chart.parentElement.querySelectorAll(".axis");
  topText.style.top = "0";
  middleText.style.top = "50%";
  say(topText, format(top) + unit);
  say(middleText, format(isLog ? Math.sqrt(top * low) : top / 2) + unit);
  say(chart.parentElement.querySelector(".time span"), `${shownS < 100 ? `${Math.round(shownS)} s` : `${Math.round(shownS / 60)} min`} ago`);
  const last = sums.at(-1);
  mark(chart, "aria-label", last ? lines.map(({ name, of }) => `${name}: ${of(last) === null || of(last) === undefined ? "none" : format(of(last)) + unit}`).join(", ") : "No data yet");
}

function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= value);
}

function legend(id, sums, lines, format, unit) {
  const box = $(id);
  const last = sums.at(-1);
  lines.forEach(({ name, key, of }, n) => {
    if (!box.children[n]) box.append(el("span", {}, el("i", { class: key }, "— "), el("span"), " "));
    const value = last ? of(last) : null;
    say(box.children[n].children[1], `${name} ${value === null || value === undefined ? "–" : format(value) + unit} `);
  });
}

const RATE = [
  { name: "succeeded", key: "k0", of: (sum) => (sum.outcomes.succeeded || 0) / sum.window_s },
  { name: "failed", key: "k1", of: (sum) => ((sum.outcomes.dead || 0) + (sum.outcomes.retrying || 0)) / sum.window_s },
  { name: "submitted", key: "k4", of: (sum) => sum.accepted / sum.window_s },
];
const spread = (of) => [
  { name: "p50", key: "k2", of: (sum) => (of(sum) ? of(sum).p50 : null) },
  { name: "p95", key: "k3", of: (sum) => (of(sum) ? of(sum).p95 : null) },
  { name: "p99", key: "k1", of: (sum) => (of(sum) ? of(sum).p99 : null) },
];
const WAIT = spread((sum) => sum.wait_ms);
const RUN = spread((sum) => sum.run_ms);

function showCharts(sums) {
  const from = sums.length ? sums.at(-1).at_ms - 1000 * SHOWN_S : 0;
  const shown = sums.filter((sum) => sum.at_ms > from && !sum.isPartial);
  const each = [["rate", RATE, { format: (n) => count(Math.round(n)) }], ["wait", WAIT, { isLog: true, format: span }], ["run", RUN, { isLog: true, format: span }]];
  for (const [name, lines, how] of each) {
    drawLines(`chart-${name}`, shown, lines, how);
    legend(`key-${name}`, shown, lines, how.format, how.unit || "");
  }
}
