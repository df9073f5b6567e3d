"use strict";
// Which view is shown, and what is asked for when.

const REFRESH_MS = 1000;
const ELSEWHERE_MS = 3000; // no member is shown: what is wrong now is told by /health
const HIDDEN_MS = 5000;
let refreshTimer = 0;
let refreshing = false;
let wanted = false;
let afterTimer = 0;

async function refresh() {
  if (refreshing) {
    wanted = true;
    return;
  }
  refreshing = true;
  wanted = false;
  clearTimeout(refreshTimer);
  try {
    const base = net.base;
    const view = await read("/cluster?events=0");
    if (base === net.base) {
      if (!cluster.view || cluster.view.node_id !== view.node_id || cluster.view.members.length !== view.members.length) cluster.isTold = false;
      cluster.view = view;
      net.others = view.members.filter((member) => member.state !== "dead" && member.state !== "left" && member.node_id !== view.node_id).map((member) => member.url);
      noteCuts(view);
      names.learn(view.members.map((member) => member.node_id));
      for (const member of [...view.members].sort((a, b) => (a.node_id < b.node_id ? -1 : 1))) hues.get(member.node_id);
      if (!$("view-cluster").hidden) {
        showRing(view);
        showMembers(view);
      }
      showStoriesSoon();
      if (Date.now() - cluster.healthMs > 900) loadHealth();
      showNow();
    }
  } catch (error) {
    if (!(error instanceof Refused) && !net.isLive) nobody();
  }
  refreshing = false;
  refreshTimer = setTimeout(refresh, wanted ? 60 : document.hidden ? HIDDEN_MS : $("view-cluster").hidden ? ELSEWHERE_MS : REFRESH_MS);
}

function refreshNow() {
  clearTimeout(refreshTimer);
  refresh();
}

async function loadHealth() {
  cluster.healthMs = Date.now();
  try {
    const response = await fetch(net.base + "/health", { headers: headers(), signal: AbortSignal.timeout(4000) });
    if (response.status === 200 || response.status === 503) cluster.health = await response.json();
    showNow();
  } catch {
    // `read` of the cluster finds out, and goes to another node.
  }
}

function nobody() {
  mark($("now"), "data-tone", "bad");
  say($("now-head"), "No node answers.");
  say($("now-what"), "What you see is how it was.");
  say($("now-hint"), "This page tries again by itself. Is a node running (scripts/launch_cluster.sh status)?");
  $("now-more").hidden = true;
}

let storiesTimer = 0;
function showStoriesSoon() {
  if (!storiesTimer) {
    storiesTimer = setTimeout(() => {
      storiesTimer = 0;
      if (document.hidden) return;
      if (!cluster.isTold) cluster.told = tellStories(cluster.events.values(), cluster.view ? cluster.view.node_id : "");
      cluster.isTold = true;
      if (!$("view-cluster").hidden) showStories();
      showNow();
    }, 40);
  }
}

net.onEvent = (name, data) => {
  if (name === "task") {
    takeSum(data);
    return;
  }
  keep(data);
  showStoriesSoon();
  refreshNow();
  clearTimeout(afterTimer); // and once more: a node tells what happened before its view of the members is made anew
  afterTimer = setTimeout(refreshNow, 130);
};

let wasLive = false;
net.onState = () => {
  if (net.isLive && !wasLive) goneLive();
  wasLive = net.isLive;
  const where = net.base.split("//")[1];
  mark($("link-dot"), "data-tone", net.isLive ? (net.base === HOME ? "good" : "warn") : "bad");
  say($("link-text"), net.isLive ? `live, by ${where}` : `connecting to ${where}…`);
  const away = net.base !== HOME;
  const box = $("away");
  if (away && box.getAttribute("data-base") !== net.base) {
    mark(box, "data-base", net.base);
    box.replaceChildren(`${HOME.split("//")[1]}, which this page came from, does not answer. You see the cluster through ${where} now. To submit, cancel or replay, `,
      el("a", { href: `${net.base}/${location.hash}` }, `open the page of ${where}`), ".");
    refreshNow();
  }
  if (!away) mark(box, "data-base", null);
  box.hidden = !away;
};

function route() {
  const [path, query] = (location.hash.slice(1) || "/cluster").split("?");
  const parts = path.split("/").filter(Boolean);
  const view = parts[0] === "tasks" && parts[1] ? "task" : ["tasks", "dead"].includes(parts[0]) ? parts[0] : "cluster";
  for (const name of ["cluster", "tasks", "dead", "task"]) $(`view-${name}`).hidden = name !== view;
  for (const name of ["cluster", "tasks", "dead"]) mark($(`nav-${name}`), "aria-current", name === view || (name === "tasks" && view === "task") ? "page" : null);
  document.title = `${{ cluster: "Cluster", tasks: "Tasks", dead: "Dead letters", task: "Task" }[view]} · Rumor`;
  tasks.shownText = "";
  if (view === "cluster" && cluster.view) {
    showRing(cluster.view);
    showMembers(cluster.view);
    showStoriesSoon();
  }
  if (view === "tasks") {
    const asked = new URLSearchParams(query || "");
    tasks.filter = Object.fromEntries(["state", "type", "key"].filter((name) => asked.get(name)).map((name) => [name, asked.get(name)]));
    for (const name of ["state", "type", "key"]) $(`f-${name}`).value = tasks.filter[name] || "";
    $("f-id").value = "";
    tasks.page = 0;
    showStates();
    showCharts(tasks.sums);
    loadList();
  }
  if (view === "dead") {
    tasks.dead.page = 0;
    loadDead();
  }
  if (view === "task") loadTask(decodeURIComponent(parts[1]));
  else tasks.shownId = "";
}

window.addEventListener("hashchange", () => {
  route();
  window.scrollTo(0, 0);
  $("main").focus({ preventScroll: true });
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    refreshNow();
    showStates();
    if (!$("view-tasks").hidden) showCharts(tasks.sums);
  }
});

learnType("process");
route();
refresh();
follow();
