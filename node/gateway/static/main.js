"use strict";
// Decides which view is shown, and when the page asks for what. It is the last script: no other uses it.

{
  const { $, el, say, mark } = base;

  const REFRESH_MS = 1000;
  const ELSEWHERE_MS = 3000; // where no view shows members: /health says what is wrong
  const HIDDEN_MS = 5000;
  const HEALTH_MS = 900; // at least this long between two requests for /health
  const STORIES_AFTER_MS = 40;
  const AGAIN_AFTER_MS = 130;
  let refreshTimer = 0;
  let isRefreshing = false;
  let isAskedAgain = false;
  let againTimer = 0;
  let storiesTimer = 0;
  let wasLive = false;

  async function refresh() {
    if (isRefreshing) {
      isAskedAgain = true;
      return;
    }
    isRefreshing = true;
    isAskedAgain = false;
    clearTimeout(refreshTimer);
    try {
      const url = net.base;
      const view = await net.read("/cluster?events=0");
      if (url === net.base) showView(view);
    } catch (error) {
      if (!(error instanceof net.Refused) && !net.isLive) cluster.showSilence();
    }
    isRefreshing = false;
    const waitMs = document.hidden ? HIDDEN_MS : $("view-cluster").hidden ? ELSEWHERE_MS : REFRESH_MS;
    refreshTimer = setTimeout(refresh, isAskedAgain ? 60 : waitMs);
  }

  function refreshNow() {
    clearTimeout(refreshTimer);
    refresh();
  }

  function showView(view) {
    cluster.takeView(view);
    const isOther = (member) => member.state !== "dead" && member.state !== "left" && member.node_id !== view.node_id;
    net.others = view.members.filter(isOther).map((member) => member.url);
    if (!$("view-cluster").hidden) {
      cluster.showRing(view);
      cluster.showMembers(view);
    }
    showStoriesSoon();
    if (Date.now() - cluster.healthMs > HEALTH_MS) loadHealth();
    cluster.showNow();
  }

  async function loadHealth() {
    cluster.healthMs = Date.now();
    try {
      const response = await fetch(net.base + "/health", { headers: net.headers(), signal: AbortSignal.timeout(4000) });
      if (response.status === 200 || response.status === 503) cluster.health = await response.json();
      cluster.showNow();
    } catch {
      // The next `net.read` notices it too, and moves on to another node.
    }
  }

  function showStoriesSoon() {
    if (!storiesTimer) {
      storiesTimer = setTimeout(() => {
        storiesTimer = 0;
        if (document.hidden) return;
        cluster.tellStories();
        if (!$("view-cluster").hidden) cluster.showStories();
        cluster.showNow();
      }, STORIES_AFTER_MS);
    }
  }

  // ---- what comes from the node

  net.onEvent = (name, data) => {
    if (name === "task") {
      tasks.takeSum(data);
      return;
    }
    cluster.takeEvent(data);
    showStoriesSoon();
    refreshNow();
    clearTimeout(againTimer); // a node sends an event before it has renewed its view of the members, so ask once more
    againTimer = setTimeout(refreshNow, AGAIN_AFTER_MS);
  };

  net.onToken = refreshNow;

  net.onState = () => {
    if (net.isLive && !wasLive) tasks.goneLive();
    wasLive = net.isLive;
    const where = net.base.split("//")[1];
    mark($("link-dot"), "data-tone", net.isLive ? (net.base === net.HOME ? "good" : "warn") : "bad");
    say($("link-text"), net.isLive ? `live from ${where}` : `connecting to ${where}…`);
    showAway(where);
  };

  function showAway(where) {
    const isAway = net.base !== net.HOME;
    const box = $("away");
    if (isAway && box.getAttribute("data-base") !== net.base) {
      const home = net.HOME.split("//")[1];
      mark(box, "data-base", net.base);
      box.replaceChildren(
        `${home}, which served this page, does not answer. What you see now comes from ${where}. To submit, cancel or replay tasks, `,
        el("a", { href: `${net.base}/${location.hash}` }, `open the page of ${where}`), ".");
      refreshNow();
    }
    if (!isAway) mark(box, "data-base", null);
    box.hidden = !isAway;
  }

  // ---- the views

  const TITLES = { cluster: "Cluster", tasks: "Tasks", dead: "Dead letters", task: "Task" };

  function route() {
    const [path, query] = (location.hash.slice(1) || "/cluster").split("?");
    const parts = path.split("/").filter(Boolean);
    const view = parts[0] === "tasks" && parts[1] ? "task" : ["tasks", "dead"].includes(parts[0]) ? parts[0] : "cluster";
    for (const name of Object.keys(TITLES)) $(`view-${name}`).hidden = name !== view;
    for (const name of ["cluster", "tasks", "dead"]) {
      mark($(`nav-${name}`), "aria-current", name === (view === "task" ? "tasks" : view) ? "page" : null);
    }
    document.title = `${TITLES[view]} · Rumor`;
    if (view === "cluster" && cluster.view) {
      cluster.showRing(cluster.view);
      cluster.showMembers(cluster.view);
      showStoriesSoon();
    }
    if (view === "tasks") tasks.openList(new URLSearchParams(query || ""));
    if (view === "dead") tasks.openDead();
    if (view === "task") tasks.openTask(decodeURIComponent(parts[1]));
    else tasks.closeTask();
  }

  window.addEventListener("hashchange", () => {
    route();
    window.scrollTo(0, 0);
    $("main").focus({ preventScroll: true });
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      refreshNow();
      tasks.showAgain();
    }
  });

  tasks.learnType("process");
  route();
  refresh();
  net.follow();
}
