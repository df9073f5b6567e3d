"use strict";
// Charts of values over time, drawn by hand: a few hundred points a line, one path a line, redrawn once a second.

const charts = (() => {
  const { $, el, svg, say, mark, count, span } = base;

  const SHOWN_S = 600; // seconds on the axis, at most
  const LEAST_S = 60; // and at least
  const WIDTH = 300;
  const HEIGHT = 100;

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
  const CHARTS = [
    { name: "rate", lines: RATE, isLog: false, format: (n) => count(Math.round(n)) },
    { name: "wait", lines: spread((sum) => sum.wait_ms), isLog: true, format: span },
    { name: "run", lines: spread((sum) => sum.run_ms), isLog: true, format: span },
  ];

  function show(sums) {
    const from = sums.length ? sums.at(-1).at_ms - 1000 * SHOWN_S : 0;
    const shown = sums.filter((sum) => sum.at_ms > from && !sum.isPartial);
    for (const chart of CHARTS) {
      drawLines(chart, shown);
      legend(chart, shown);
    }
  }

  function drawLines({ name, lines, isLog, format }, sums) {
    const chart = $(`chart-${name}`);
    if (!chart.firstChild) build(chart, lines);
    const now = sums.length ? sums.at(-1).at_ms : Date.now();
    const values = lines.flatMap(({ of }) => sums.map(of)).filter((value) => value > 0);
    const top = niceTop(Math.max(isLog ? 10 : 5, ...values));
    const low = isLog ? Math.min(1, ...values) : 0;
    const shownS = Math.min(SHOWN_S, Math.max(LEAST_S, sums.length ? (now - sums[0].at_ms) / 1000 : 0));
    const x = (ms) => (WIDTH * (1 - (now - ms) / 1000 / shownS)).toFixed(1);
    const share = (value) => (!isLog ? value / top : value <= low ? 0 : Math.log(value / low) / Math.log(top / low));
    const y = (value) => (HEIGHT - share(value) * HEIGHT).toFixed(1);
    const paths = chart.querySelectorAll("path");
    lines.forEach(({ of }, n) => mark(paths[n], "d", pathOf(sums, of, x, y)));
    const [topText, middleText] = chart.parentElement.querySelectorAll(".axis");
    say(topText, format(top));
    say(middleText, format(isLog ? Math.sqrt(top * low) : top / 2));
    const shown = shownS < 100 ? `${Math.round(shownS)} s` : `${Math.round(shownS / 60)} min`;
    say(chart.parentElement.querySelector(".time span"), `${shown} ago`);
    const last = sums.at(-1);
    const text = (value) => (value === null || value === undefined ? "none" : format(value));
    mark(chart, "aria-label", last ? lines.map((line) => `${line.name}: ${text(line.of(last))}`).join(", ") : "No data yet");
  }

  // Puts the chart into a box: two values on its axis, the time below, a grid, and a path for each line.
  function build(chart, lines) {
    mark(chart, "viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    const box = el("div", { class: "chart-box" });
    chart.replaceWith(box);
    const [top, middle] = [el("span", { class: "axis" }), el("span", { class: "axis" })];
    top.style.top = "0";
    middle.style.top = "50%";
    box.append(top, middle, chart, el("p", { class: "time", "aria-hidden": "true" }, el("span"), el("span", {}, "now")));
    for (const at of [0.5, 50, 99.5]) chart.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: at, y2: at }));
    for (const { key } of lines) chart.append(svg("path", { class: `line ${key}` }));
  }

  // The path of one line, interrupted where a value is missing.
  function pathOf(sums, of, x, y) {
    let d = "";
    let pen = "M";
    for (const sum of sums) {
      const value = of(sum);
      if (value === null || value === undefined) {
        pen = "M";
        continue;
      }
      d += `${pen}${x(sum.at_ms)} ${y(value)}`;
      pen = "L";
    }
    return d;
  }

  function niceTop(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= value);
  }

  function legend({ name, lines, format }, sums) {
    const box = $(`key-${name}`);
    const last = sums.at(-1);
    lines.forEach((line, n) => {
      if (!box.children[n]) box.append(el("span", {}, el("i", { class: line.key }, "— "), el("span"), " "));
      const value = last ? line.of(last) : null;
      say(box.children[n].children[1], `${line.name} ${value === null || value === undefined ? "–" : format(value)} `);
    });
  }

  return { show };
})();
