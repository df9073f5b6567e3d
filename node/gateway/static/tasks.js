"use strict";
// Tasks: counts, charts, lists, one task with its history, and everything that changes them.

const SUMS_MAX = 720; // those heard in ten minutes, and those of before
const PAGE = 30;
const TONE = { succeeded: "good", dead: "bad", cancelled: "dim", running: "", queued: "", scheduled: "dim", retrying: "warn", waiting: "dim" };
const STATES = ["queued", "running", "scheduled", "succeeded", "dead", "cancelled"];
const PRIORITIES = { 2: "low", 5: "normal", 8: "high" };
const TERMINAL = ["succeeded", "dead", "cancelled"];

const tasks = { sums: [], filter: {}, cursor: null, page: 0, dead: { cursor: null, page: 0, picked: new Set(), rows: [] }, shownId: "", liveMs: 0, pastTimer: 0, types: new Set(["process", "sleep", "fail", "cpu", "noop", "crash_process"]), loadedMs: 0 };

function took(task) {
  return task.finished_at_ms && task.started_at_ms ? task.finished_at_ms - task.started_at_ms : null;
}

function idLink(task) {
  return el("a", { href: `#/tasks/${task.id}`, class: "mono", title: task.id }, `${task.id.slice(0, 4)}…${task.id.slice(16)}`);
}

// ---- counts and charts

function showStates() {
  const last = tasks.sums.at(-1);
  const states = last ? last.states : null;
  const box = $("states");
  if (!box.children.length) {
    for (const state of STATES) {
      const choose = () => {
        location.hash = tasks.filter.state === state ? "#/tasks" : `#/tasks?state=${state}`;
      };
      box.append(el("li", {}, el("button", { "aria-pressed": "false", "data-state": state, onclick: choose }, el("b", {}, "–"), el("span", {}, state === "scheduled" ? "scheduled, retrying" : state))));
    }
  }
  for (const item of box.children) {
    const state = item.firstChild.getAttribute("data-state");
    say(item.querySelector("b"), states ? count(states[state]) : "–");
    mark(item.firstChild, "aria-pressed", String(tasks.filter.state === state));
  }
  const queues = last && last.queues ? Object.entries(last.queues) : [];
  say($("queues-line"), queues.length ? `Queued: ${queues.map(([name, queue]) => `${name} ${count(queue.queued)}`).join(" · ")}` : "\u00a0");
  say($("nav-dead-count"), states && states.dead ? count(states.dead) : "");
}

// A node that nobody listened to tells its sums rarely: the first seconds lack some of them. The charts leave these out,
// and get them from what the cluster keeps once it is there.
const PARTIAL_MS = 4500;
const FILLED_AFTER_MS = 12000;

function goneLive() {
  tasks.liveMs = Date.now();
  loadPast();
  clearTimeout(tasks.pastTimer);
  tasks.pastTimer = setTimeout(loadPast, FILLED_AFTER_MS);
}

function takeSum(sum) {
  sum.isPartial = Date.now() - tasks.liveMs < PARTIAL_MS;
  tasks.sums.push(sum);
  if (tasks.sums.length > SUMS_MAX) tasks.sums.shift();
  for (const type of Object.keys(sum.types)) learnType(type);
  if (document.hidden) return;
  showStates();
  if (!$("view-tasks").hidden) {
    showCharts(tasks.sums);
    const isChanged = sum.accepted || Object.keys(sum.outcomes).length;
    if (isChanged && tasks.page === 0 && Date.now() - tasks.loadedMs > 1900) loadList();
  }
  if (!$("view-dead").hidden && sum.states && tasks.dead.known !== sum.states.dead && tasks.dead.page === 0 && !tasks.dead.picked.size) loadDead();
}

// What was done before this page listened, or while it could not. A step of which it heard a part itself is left out.
async function loadPast() {
  let past;
  try {
    past = (await read("/sums")).sums;
  } catch {
    return; // the charts begin now
  }
  if (!past.length) return;
  const step = (sum) => Math.ceil(sum.at_ms / (1000 * past[0].window_s));
  const live = tasks.sums.filter((sum) => !sum.isPast);
  const heard = new Set(live.filter((sum) => !sum.isPartial).map(step));
  const begin = past.findIndex((sum) => sum.accepted || Object.keys(sum.outcomes).length);
  const missing = begin < 0 ? [] : past.slice(begin).filter((sum) => !heard.has(step(sum)));
  tasks.sums = [...missing.map((sum) => ({ ...sum, isPast: true })), ...live].sort((a, b) => a.at_ms - b.at_ms);
  if (!document.hidden && !$("view-tasks").hidden) showCharts(tasks.sums);
}

function learnType(type) {
  if (tasks.types.has(type) && $("types").children.length) return;
  tasks.types.add(type);
  $("types").replaceChildren(...[...tasks.types].sort().slice(0, 200).map((one) => el("option", { value: one })));
}

// ---- the list

async function loadList(cursor = "") {
  const asked = JSON.stringify(tasks.filter);
  tasks.loadedMs = Date.now();
  const query = new URLSearchParams({ limit: PAGE, ...tasks.filter });
  if (cursor) query.set("cursor", cursor);
  let page;
  try {
    page = await read(`/tasks?${query}`);
  } catch (error) {
    $("rows-pager").hidden = false;
    say($("rows-note"), error.message);
    return;
  }
  if (asked !== JSON.stringify(tasks.filter)) return;
  tasks.cursor = page.cursor;
  put($("rows"), page.tasks.map((task) => [task.id + task.state + task.attempt, task.id, () => {
    learnType(task.type);
    return el("tr", { "data-id": task.id },
      el("td", {}, idLink(task)), el("td", {}, task.type), el("td", { class: TONE[task.state] }, task.state), el("td", { class: "more" }, task.node_id ? names.short(task.node_id) : "–"),
      el("td", { class: "n more" }, `${task.attempt} of ${task.max_attempts}`), el("td", { class: "n more" }, task.queued_at_ms ? clock(task.queued_at_ms) : "–"), el("td", { class: "n" }, span(took(task))));
  }]));
  $("rows-pager").hidden = false;
  $("older").hidden = !page.cursor;
  $("newest").hidden = tasks.page === 0;
  const what = [tasks.filter.state, tasks.filter.type && `type ${tasks.filter.type}`, tasks.filter.key && `key ${tasks.filter.key}`].filter(Boolean).join(", ");
  say($("rows-note"), page.tasks.length ? `${what || "All tasks"}, newest first` : `No task here${what ? ` is ${what}` : ""}. ${tasks.page ? "" : "Submit one to see it run."}`);
}

// Rows that did not change stay, so that focus and selection do.
function put(body, wanted) {
  const old = new Map([...body.children].map((row) => [row.getAttribute("data-key"), row]));
  const made = wanted.map(([key, , make]) => {
    const row = old.get(key) || make();
    row.setAttribute("data-key", key);
    return row;
  });
  const focused = document.activeElement && body.contains(document.activeElement) ? document.activeElement.closest("tr").getAttribute("data-id") : null;
  if (made.length !== body.children.length || made.some((row, n) => body.children[n] !== row)) body.replaceChildren(...made);
  if (focused) {
    const again = made.find((row) => row.getAttribute("data-id") === focused);
    if (again && !again.contains(document.activeElement)) again.querySelector("a").focus();
  }
}

$("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("f-id").value.trim()) {
    location.hash = `#/tasks/${encodeURIComponent($("f-id").value.trim())}`;
    return;
  }
  const query = new URLSearchParams();
  for (const name of ["state", "type", "key"]) if ($(`f-${name}`).value.trim()) query.set(name, $(`f-${name}`).value.trim());
  location.hash = String(query) ? `#/tasks?${query}` : "#/tasks";
});
$("older").addEventListener("click", () => {
  tasks.page += 1;
  loadList(tasks.cursor);
});
$("newest").addEventListener("click", () => {
  tasks.page = 0;
  loadList();
});

// ---- dead letters

async function loadDead(cursor = "") {
  const dead = tasks.dead;
  let page;
  try {
    page = await read(`/tasks?state=dead&limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
  } catch (error) {
    say($("dead-note"), error.message);
    return;
  }
  dead.cursor = page.cursor;
  dead.rows = page.tasks;
  const last = tasks.sums.at(-1);
  dead.known = last && last.states ? last.states.dead : null;
  const here = new Set(page.tasks.map((task) => task.id));
  for (const id of [...dead.picked]) if (!here.has(id)) dead.picked.delete(id);
  put($("dead-rows"), page.tasks.map((task) => [task.id + task.delivery, task.id, () => {
    const box = el("input", { type: "checkbox", "aria-label": `Select ${task.id}`, onchange: () => { box.checked ? dead.picked.add(task.id) : dead.picked.delete(task.id); showPicked(); } });
    const error = task.error || {};
    return el("tr", { "data-id": task.id }, el("td", {}, box), el("td", {}, idLink(task)), el("td", { class: "more" }, task.type),
      el("td", { class: "wrap" }, el("b", { class: "bad" }, error.type || "Error"), " ", shorten(String(error.message || ""), 240)),
      el("td", { class: "n more" }, String(task.attempt)), el("td", { class: "n more" }, task.finished_at_ms ? clock(task.finished_at_ms) : "–"));
  }]));
  $("dead-pager").hidden = false;
  $("dead-older").hidden = !page.cursor;
  $("dead-newest").hidden = dead.page === 0;
  $("replay-all").disabled = $("purge").disabled = !page.tasks.length && dead.page === 0;
  if (!page.tasks.length) say($("dead-note"), "No dead letters.");
  else if ($("dead-note").textContent === "No dead letters.") say($("dead-note"), "");
  showPicked();
}

function showPicked() {
  const n = tasks.dead.picked.size;
  $("replay-some").disabled = !n;
  say($("replay-some"), n ? `Replay ${n} selected` : "Replay selected");
  for (const row of $("dead-rows").children) row.querySelector("input").checked = tasks.dead.picked.has(row.getAttribute("data-id"));
  $("all-dead").checked = n > 0 && n === tasks.dead.rows.length;
  $("all-dead").indeterminate = n > 0 && n < tasks.dead.rows.length;
}

$("all-dead").addEventListener("change", () => {
  tasks.dead.picked = new Set($("all-dead").checked ? tasks.dead.rows.map((task) => task.id) : []);
  showPicked();
});
$("dead-older").addEventListener("click", () => {
  tasks.dead.page += 1;
  loadDead(tasks.dead.cursor);
});
$("dead-newest").addEventListener("click", () => {
  tasks.dead.page = 0;
  loadDead();
});

async function acting(button, note, work) {
  button.disabled = true;
  say(note, "");
  try {
    say(note, (await work()) || "");
  } catch (error) {
    say(note, error.message);
  }
  button.disabled = false;
}

$("replay-some").addEventListener("click", () => acting($("replay-some"), $("dead-note"), async () => {
  const ids = [...tasks.dead.picked];
  const done = await Promise.allSettled(ids.map((id) => change("POST", `/tasks/${id}/retry`)));
  tasks.dead.picked.clear();
  const failed = done.filter((one) => one.status === "rejected");
  setTimeout(loadDead, 50);
  return `${many(ids.length - failed.length, "task")} queued again.${failed.length ? ` ${failed[0].reason.message}` : ""}`;
}));
$("replay-all").addEventListener("click", () => acting($("replay-all"), $("dead-note"), async () => {
  const { replayed } = await change("POST", "/dead/replay", {});
  tasks.dead.page = 0;
  setTimeout(loadDead, 50);
  return `${many(replayed, "task")} queued again.`;
}));
$("purge").addEventListener("click", async () => {
  if (!(await isSure("Remove all dead letters? Their data and errors are lost.", "Remove all"))) return;
  acting($("purge"), $("dead-note"), async () => {
    const { removed } = await change("DELETE", "/dead");
    setTimeout(loadDead, 300);
    return `${many(removed, "task")} removed.`;
  });
});

function isSure(question, yes) {
  const dialog = $("sure");
  say($("sure-text"), question);
  say($("sure-yes"), yes);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

// ---- one task

let taskTimer = 0;

async function loadTask(id) {
  clearTimeout(taskTimer);
  tasks.shownId = id;
  let task = null;
  try {
    task = await read(`/tasks/${encodeURIComponent(id)}`);
  } catch (error) {
    if (tasks.shownId !== id) return;
    $("task").replaceChildren(back(), el("h1", {}, "This task cannot be shown"), el("p", { class: "note wide" }, error.message));
    if (!(error instanceof Refused)) taskTimer = setTimeout(() => loadTask(id), 1500);
    return;
  }
  if (tasks.shownId !== id || $("view-task").hidden) return;
  const text = JSON.stringify(task);
  if (text !== tasks.shownText) {
    tasks.shownText = text;
    showTask(task);
  }
  if (!TERMINAL.includes(task.state)) taskTimer = setTimeout(() => loadTask(id), document.hidden ? 4000 : 700);
}

const back = () => el("p", { class: "note" }, el("a", { href: "#/tasks" }, "All tasks"));

function showTask(task) {
  const box = $("task");
  const note = el("span", { role: "status" });
  const act = (label, name, work) => {
    const button = el("button", { class: name, id: `act-${name || "plain"}` }, label);
    button.addEventListener("click", () => acting(button, note, async () => {
      await work();
      loadTask(task.id);
    }));
    return button;
  };
  const canCancel = !TERMINAL.includes(task.state);
  const canRetry = task.state === "dead" || task.state === "cancelled";
  const fact = (name, value) => (value === null || value === undefined || value === "" ? null : el("div", {}, el("dt", {}, name), el("dd", {}, String(value))));
  const wait = task.started_at_ms && task.queued_at_ms ? task.started_at_ms - task.queued_at_ms : null;
  const focused = document.activeElement && box.contains(document.activeElement) ? document.activeElement.id : "";
  box.replaceChildren(
    back(),
    el("div", { class: "heading" }, el("h1", {}, `${task.type}: `, el("span", { class: TONE[task.state] }, task.state)),
      el("p", { class: "actions" }, note, canRetry && act(task.state === "dead" ? "Replay" : "Run it after all", "main", () => change("POST", `/tasks/${task.id}/retry`)), canCancel && act("Cancel task", "bad", () => change("DELETE", `/tasks/${task.id}`)))),
    el("p", { class: "mono dim" }, task.id),
    task.progress === null || TERMINAL.includes(task.state) ? "" : progressBar(task.progress),
    el("dl", { class: "facts" },
      fact("Queue", task.queue), fact("Priority", PRIORITIES[task.priority] ? `${task.priority} (${PRIORITIES[task.priority]})` : task.priority), fact("Node", task.node_id), fact("Attempt", `${task.attempt} of ${task.max_attempts}`), fact("Deliveries", task.delivery),
      fact("Queued", task.queued_at_ms && clock(task.queued_at_ms)), fact("Runs at", task.run_at_ms && clock(task.run_at_ms)), fact("Waited", wait !== null && wait >= 0 ? span(wait) : null), fact("Ran for", took(task) === null ? null : span(took(task))), fact("Key", task.key), task.traceparent && el("div", {}, el("dt", {}, "Trace"), el("dd", { class: "mono" }, traceOf(task)))),
    el("div", { class: "blocks" },
      el("div", {}, el("h2", {}, "History"), el("ol", { class: "history", id: "history" }, ...historyOf(task))),
      el("div", {}, el("h2", {}, "Data"), pre(task.data),
        task.error !== null && el("h2", {}, "Error"), task.error !== null && errorBlock(task.error),
        task.state === "succeeded" && el("h2", {}, "Result"), task.state === "succeeded" && pre(task.result))));
  if (focused && $(focused)) $(focused).focus();
}

function traceOf(task) {
  const id = task.traceparent.split("-")[1];
  return task.trace_url ? el("a", { href: task.trace_url, target: "_blank", rel: "noopener" }, id) : id;
}

function progressBar(progress) {
  const share = typeof progress === "number" ? progress : typeof progress === "object" && progress && typeof progress.done === "number" && progress.total ? progress.done / progress.total : null;
  return share === null ? el("p", {}, `Progress: ${JSON.stringify(progress)}`) : el("p", {}, el("progress", { max: 1, value: share, "aria-label": "Progress" }), ` ${Math.round(share * 100)} %`);
}

const pre = (value) => el("pre", { tabindex: "0" }, JSON.stringify(value, null, 2));

function errorBlock(error) {
  const text = typeof error === "object" && error ? `${error.type}: ${error.message}${error.traceback ? `\n\n${error.traceback}` : ""}` : JSON.stringify(error, null, 2);
  return el("pre", { tabindex: "0", id: "error" }, text);
}

const ENDED = {
  retrying: (one) => ["warn", one.error && one.error.type === "Timeout" ? "ran out of time" : "failed", one.error ? `${one.error.type}: ${one.error.message}` : ""],
  released: () => ["", "given back unfinished", "Its node stopped or could not start it; the attempt does not count."],
  dead: (one) => ["bad", "failed for the last time", one.error ? `${one.error.type}: ${one.error.message}` : ""],
  lost: (one) => ["bad", "lost with its node", `${one.node_id || "Its node"} died while it ran, or was ended; the task was queued again.`],
  cancelled: (one) => ["", "cancelled", one.error ? one.error.message : ""],
  replayed: (one) => ["", "queued again by hand", one.error ? one.error.message : ""],
  refused: (one) => ["warn", "a late outcome was refused", `${one.node_id || "A node"} ${one.error ? one.error.message : ""}: it had lost the right to say so.`],
};

// An id begins with the time at which its gateway made it, as ULIDs do.
const bornMs = (id) => [...id.slice(0, 10)].reduce((ms, letter) => ms * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".indexOf(letter), 0);

function historyOf(task) {
  const items = [];
  const line = (tone, title, when, why) => items.push(el("li", { "data-tone": tone || null }, el("b", {}, title), " ", el("span", { class: "when" }, when), why ? el("span", { class: "why" }, why) : null));
  const hasEntries = task.history && task.history.length;
  if (!hasEntries || task.history[0].delivery <= 1) line("", "Submitted", clock(bornMs(task.id)), `to queue ${task.queue}`);
  else line("", "Earlier attempts", "", "are not kept: a history holds the last 20 entries.");
  for (const one of task.history || []) {
    const [tone, what, why] = (ENDED[one.outcome] || (() => ["", one.outcome, ""]))(one);
    const ran = one.started_at_ms && one.outcome !== "replayed" && one.outcome !== "refused" ? ` after ${span(one.at_ms - one.started_at_ms)}` : "";
    const where = one.node_id && one.outcome !== "replayed" && one.outcome !== "refused" ? ` on ${names.short(one.node_id)}` : "";
    const title = one.outcome === "replayed" || one.outcome === "refused" || (one.outcome === "cancelled" && !one.attempt) ? what[0].toUpperCase() + what.slice(1) : `Attempt ${one.attempt ?? "–"}${where}: ${what}${ran}`;
    line(tone, title, `${clock(one.at_ms)}${one.delivery ? `, delivery ${one.delivery}` : ""}`, why);
  }
  const where = task.node_id ? ` on ${names.short(task.node_id)}` : "";
  if (task.state === "succeeded") line("good", `Attempt ${task.attempt}${where}: succeeded${took(task) === null ? "" : ` after ${span(took(task))}`}`, `${clock(task.finished_at_ms)}, delivery ${task.delivery}`);
  else if (task.state === "running") line("live", `Attempt ${task.attempt}${where}: running`, `since ${clock(task.started_at_ms)}, delivery ${task.delivery}`);
  else if (task.state === "retrying" || task.state === "scheduled") line("live", task.state === "retrying" ? "Will run again" : "Will run", task.run_at_ms ? `at ${clock(task.run_at_ms)}` : "");
  else if (task.state === "queued") line("live", "Waits for a free slot", "");
  return items;
}

// ---- submit

$("open-submit").addEventListener("click", () => {
  say($("submit-note"), "");
  $("submit").showModal();
});
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());

$("submit-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const note = $("submit-note");
  let data;
  try {
    data = JSON.parse($("s-data").value.trim() || "null");
  } catch (error) {
    say(note, `The data is not JSON: ${error.message}`);
    return;
  }
  const body = { type: $("s-type").value.trim(), data };
  if ($("s-priority").value) body.priority = $("s-priority").value;
  if ($("s-delay").value) body.delay_s = Number($("s-delay").value);
  if ($("s-attempts").value) body.max_attempts = Number($("s-attempts").value);
  const times = Math.max(1, Math.min(10000, Number($("s-count").value) || 1));
  $("submit-go").disabled = true;
  try {
    if (times === 1) {
      const task = await change("POST", "/tasks", body);
      $("submit").close();
      location.hash = `#/tasks/${task.id}`;
    } else {
      const done = await change("POST", "/tasks/batch", Array(times).fill(body));
      if (done.rejected) throw new Error(`${count(done.accepted)} accepted, ${count(done.rejected)} not: ${done.results.find((one) => one.error).error.message}`);
      $("submit").close();
      loadList();
    }
  } catch (error) {
    say(note, error.message);
  }
  $("submit-go").disabled = false;
});
