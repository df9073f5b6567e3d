"use strict";
// Tasks: their counts, charts and lists, one task with its history, and every button that changes them.

const tasks = (() => {
  const { $, el, say, mark, many, count, clock, span, shorten, names } = base;

  const tasks = {
    sums: [], // oldest first
    goneLive,
    takeSum,
    showAgain,
    learnType,
    openList,
    openDead,
    openTask,
    closeTask,
  };

  const SUMS_MAX = 720; // ten minutes of live ones, and those from before the page was opened
  const PAGE = 30;
  const TYPES_MAX = 200;
  const STATES = ["queued", "running", "scheduled", "succeeded", "dead", "cancelled"];
  const TERMINAL = ["succeeded", "dead", "cancelled"];
  const TONE = {
    succeeded: "good", dead: "bad", cancelled: "dim", running: "", queued: "", scheduled: "dim", retrying: "warn", waiting: "dim",
  };
  const PRIORITIES = { 2: "low", 5: "normal", 8: "high" };
  const types = new Set(["process", "sleep", "fail", "cpu", "noop", "crash_process"]);

  function took(task) {
    return task.finished_at_ms && task.started_at_ms ? task.finished_at_ms - task.started_at_ms : null;
  }

  function idLink(task) {
    return el("a", { href: `#/tasks/${task.id}`, class: "mono", title: task.id }, `${task.id.slice(0, 4)}…${task.id.slice(16)}`);
  }

  function learnType(type) {
    if (types.has(type) && $("types").children.length) return;
    types.add(type);
    $("types").replaceChildren(...[...types].sort().slice(0, TYPES_MAX).map((value) => el("option", { value })));
  }

  // Keeps the rows that did not change, and with them focus and selection. `wanted` has {key, id, make} for each row.
  function put(body, wanted) {
    const old = new Map([...body.children].map((row) => [row.getAttribute("data-key"), row]));
    const rows = wanted.map(({ key, id, make }) => {
      const row = old.get(key) || make();
      mark(row, "data-key", key);
      mark(row, "data-id", id);
      return row;
    });
    const active = document.activeElement;
    const focused = active && body.contains(active) ? active.closest("tr").getAttribute("data-id") : null;
    if (rows.length !== body.children.length || rows.some((row, n) => body.children[n] !== row)) body.replaceChildren(...rows);
    if (focused) {
      const again = rows.find((row) => row.getAttribute("data-id") === focused);
      if (again && !again.contains(document.activeElement)) again.querySelector("a").focus();
    }
  }

  // ---- counts and charts

  // Nodes send their sums rarely while nobody listens, so the sums of the first seconds lack some nodes. The charts leave
  // them out, and fill the gap from GET /sums once the cluster has stored that time.
  const PARTIAL_MS = 4500;
  const FILLED_AFTER_MS = 12000;
  const RELOAD_MS = 1900; // at least this long between two loads of the list
  let liveMs = 0;
  let pastTimer = 0;

  function showStates() {
    const last = tasks.sums.at(-1);
    const states = last ? last.states : null;
    const box = $("states");
    if (!box.children.length) box.append(...STATES.map(stateItem));
    for (const item of box.children) {
      const state = item.firstChild.getAttribute("data-state");
      const sum = states && (state === "scheduled" ? states.scheduled + (states.retrying || 0) : states[state]);
      say(item.querySelector("b"), states ? count(sum) : "–");
      mark(item.firstChild, "aria-pressed", String(filter.state === state));
    }
    const queues = last && last.queues ? Object.entries(last.queues) : [];
    // Tasks that wait for a node with a handler are in a queue of their own, @queue@type.
    const label = (name) => (name.startsWith("@") ? `waiting for a handler of ${name.split("@")[2]}` : name);
    const each = queues.map(([name, queue]) => `${label(name)} ${count(queue.queued)}`).join(" · ");
    say($("queues-line"), queues.length ? `Queued: ${each}` : "\u00a0");
    say($("nav-dead-count"), states && states.dead ? count(states.dead) : "");
  }

  function stateItem(state) {
    const choose = () => {
      location.hash = filter.state === state ? "#/tasks" : `#/tasks?state=${state}`;
    };
    const label = state === "scheduled" ? "scheduled, retrying" : state;
    const inside = [el("b", {}, "–"), el("span", {}, label)];
    return el("li", {}, el("button", { "aria-pressed": "false", "data-state": state, onclick: choose }, ...inside));
  }

  // Catches up when a hidden tab becomes visible.
  function showAgain() {
    showStates();
    if (!$("view-tasks").hidden) charts.show(tasks.sums);
  }

  function goneLive() {
    liveMs = Date.now();
    loadPast();
    clearTimeout(pastTimer);
    pastTimer = setTimeout(loadPast, FILLED_AFTER_MS);
  }

  function takeSum(sum) {
    sum.isPartial = Date.now() - liveMs < PARTIAL_MS;
    tasks.sums.push(sum);
    if (tasks.sums.length > SUMS_MAX) tasks.sums.shift();
    for (const type of Object.keys(sum.types)) learnType(type);
    if (document.hidden) return;
    showStates();
    if (!$("view-tasks").hidden) {
      charts.show(tasks.sums);
      const isChanged = sum.accepted || Object.keys(sum.outcomes).length;
      const isDue = !list.isLoading && Date.now() - list.loadedMs > RELOAD_MS;
      if (isChanged && isDue && list.page === 0 && list.searched <= LIVE_MAX) loadList();
    }
    const isNews = sum.states && dead.counted !== sum.states.dead;
    if (!$("view-dead").hidden && isNews && dead.page === 0 && !dead.picked.size) loadDead();
  }

  // Loads the sums of the time when this page did not listen. A step of which the page itself heard a part is left out.
  async function loadPast() {
    let past;
    try {
      past = (await net.read("/sums")).sums;
    } catch {
      return; // then the charts begin with now
    }
    if (!past.length) return;
    const step = (sum) => Math.ceil(sum.at_ms / (1000 * past[0].window_s));
    const live = tasks.sums.filter((sum) => !sum.isPast);
    const heard = new Set(live.filter((sum) => !sum.isPartial).map(step));
    const begin = past.findIndex((sum) => sum.accepted || Object.keys(sum.outcomes).length);
    const missing = begin < 0 ? [] : past.slice(begin).filter((sum) => !heard.has(step(sum)));
    tasks.sums = [...missing.map((sum) => ({ ...sum, isPast: true })), ...live].sort((a, b) => a.at_ms - b.at_ms);
    if (!document.hidden && !$("view-tasks").hidden) charts.show(tasks.sums);
  }

  // ---- the list

  const FILTERS = ["state", "type", "key"];
  const LIVE_MAX = 2000; // a search that looked at more tasks than this is not repeated by itself
  let filter = {};
  const list = { page: 0, cursor: null, rows: [], searched: 0, unreadable: 0, isComplete: true, isLoading: false, loadedMs: 0, turn: 0 };

  function openList(query) {
    filter = Object.fromEntries(FILTERS.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
    for (const name of FILTERS) $(`f-${name}`).value = filter[name] || "";
    $("f-id").value = "";
    list.page = 0;
    showStates();
    charts.show(tasks.sums);
    loadList();
  }

  // Loads a page in the place of what is shown. `goesOn`: adds what a search finds further on to what it found before.
  async function loadList(from = "", goesOn = false) {
    const turn = (list.turn += 1);
    list.loadedMs = Date.now();
    list.isLoading = true;
    $("go-on").disabled = $("again").disabled = true;
    const query = new URLSearchParams({ limit: PAGE, ...filter });
    if (from) query.set("cursor", from);
    let page = null;
    let failure = "";
    try {
      page = await net.read(`/tasks?${query}`);
    } catch (error) {
      failure = error.message;
    }
    if (turn !== list.turn) return; // another list was asked for meanwhile
    list.isLoading = false;
    $("go-on").disabled = $("again").disabled = false;
    if (page) takePage(page, goesOn);
    $("rows-pager").hidden = false;
    say($("rows-note"), failure || listWords());
  }

  function takePage(page, goesOn) {
    list.cursor = page.cursor;
    list.isComplete = page.complete !== false; // an older node does not say
    list.rows = goesOn ? [...list.rows, ...page.tasks] : page.tasks;
    list.unreadable = (goesOn ? list.unreadable : 0) + (page.unreadable || []).length;
    list.searched = (goesOn ? list.searched : 0) + (page.searched || 0);
    put($("rows"), list.rows.map((task) => ({ key: task.id + task.state + task.attempt, id: task.id, make: () => listRow(task) })));
    $("older").hidden = !page.cursor || !list.isComplete;
    $("go-on").hidden = !page.cursor || list.isComplete;
    $("again").hidden = list.page > 0 || list.searched <= LIVE_MAX;
    $("newest").hidden = list.page === 0;
  }

  function listRow(task) {
    learnType(task.type);
    return el("tr", {},
      el("td", {}, idLink(task)),
      el("td", {}, task.type),
      el("td", { class: TONE[task.state] }, task.state),
      el("td", { class: "more" }, task.node_id ? names.short(task.node_id) : "–"),
      el("td", { class: "n more" }, `${task.attempt} of ${task.max_attempts}`),
      el("td", { class: "n more" }, task.queued_at_ms ? clock(task.queued_at_ms) : "–"),
      el("td", { class: "n" }, span(took(task))));
  }

  function listWords() {
    const spoilt = list.unreadable ? ` ${many(list.unreadable, "task")} cannot be read.` : "";
    return foundWords() + spoilt;
  }

  function foundWords() {
    const parts = [filter.state, filter.type && `type ${filter.type}`, filter.key && `key ${filter.key}`];
    const what = parts.filter(Boolean).join(", ");
    if (!list.isComplete) {
      const where = list.page ? `${many(list.searched, "further task")}` : `the newest ${many(list.searched, "task")}`;
      return `${what || "All tasks"}: searched ${where}, ${list.rows.length ? `found ${count(list.rows.length)}` : "found none yet"}.`;
    }
    if (list.rows.length) return `${what || "All tasks"}, newest first`;
    if (list.page) return "There are no older tasks.";
    return what ? `No task matches: ${what}.` : "There is no task yet. Submit one to see it run.";
  }

  $("filter").addEventListener("submit", (event) => {
    event.preventDefault();
    const id = $("f-id").value.trim();
    if (id) {
      location.hash = `#/tasks/${encodeURIComponent(id)}`;
      return;
    }
    const query = new URLSearchParams();
    for (const name of FILTERS) if ($(`f-${name}`).value.trim()) query.set(name, $(`f-${name}`).value.trim());
    location.hash = String(query) ? `#/tasks?${query}` : "#/tasks";
  });
  $("older").addEventListener("click", () => {
    list.page += 1;
    loadList(list.cursor);
  });
  $("go-on").addEventListener("click", () => loadList(list.cursor, true));
  $("again").addEventListener("click", () => loadList());
  $("newest").addEventListener("click", () => {
    list.page = 0;
    loadList();
  });

  // ---- dead letters

  const NO_DEAD = "There are no dead letters.";
  const dead = { cursor: null, page: 0, picked: new Set(), rows: [], counted: null };

  function openDead() {
    dead.page = 0;
    loadDead();
  }

  async function loadDead(from = "") {
    let page;
    try {
      page = await net.read(`/tasks?state=dead&limit=${PAGE}${from ? `&cursor=${encodeURIComponent(from)}` : ""}`);
    } catch (error) {
      say($("dead-note"), error.message);
      return;
    }
    const last = tasks.sums.at(-1);
    dead.cursor = page.cursor;
    dead.rows = page.tasks;
    dead.counted = last && last.states ? last.states.dead : null;
    const ids = new Set(page.tasks.map((task) => task.id));
    for (const id of [...dead.picked]) if (!ids.has(id)) dead.picked.delete(id);
    put($("dead-rows"), page.tasks.map((task) => ({ key: task.id + task.delivery, id: task.id, make: () => deadRow(task) })));
    $("dead-pager").hidden = false;
    $("dead-older").hidden = !page.cursor;
    $("dead-newest").hidden = dead.page === 0;
    $("replay-all").disabled = $("purge").disabled = !page.tasks.length && dead.page === 0;
    if (!page.tasks.length) say($("dead-note"), NO_DEAD);
    else if ($("dead-note").textContent === NO_DEAD) say($("dead-note"), "");
    showPicked();
  }

  function deadRow(task) {
    const error = task.error || {};
    const choose = () => {
      if (box.checked) dead.picked.add(task.id);
      else dead.picked.delete(task.id);
      showPicked();
    };
    const box = el("input", { type: "checkbox", "aria-label": `Select ${task.id}`, onchange: choose });
    return el("tr", {},
      el("td", {}, box),
      el("td", {}, idLink(task)),
      el("td", { class: "more" }, task.type),
      el("td", { class: "wrap" }, el("b", { class: "bad" }, error.type || "Error"), " ", shorten(String(error.message || ""), 240)),
      el("td", { class: "n more" }, String(task.attempt)),
      el("td", { class: "n more" }, task.finished_at_ms ? clock(task.finished_at_ms) : "–"));
  }

  function showPicked() {
    const n = dead.picked.size;
    $("replay-some").disabled = !n;
    say($("replay-some"), n ? `Replay ${n} selected` : "Replay selected");
    for (const row of $("dead-rows").children) row.querySelector("input").checked = dead.picked.has(row.getAttribute("data-id"));
    $("all-dead").checked = n > 0 && n === dead.rows.length;
    $("all-dead").indeterminate = n > 0 && n < dead.rows.length;
  }

  $("all-dead").addEventListener("change", () => {
    dead.picked = new Set($("all-dead").checked ? dead.rows.map((task) => task.id) : []);
    showPicked();
  });
  $("dead-older").addEventListener("click", () => {
    dead.page += 1;
    loadDead(dead.cursor);
  });
  $("dead-newest").addEventListener("click", openDead);

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

  const retry = (id) => net.change("POST", `/tasks/${id}/retry`);

  $("replay-some").addEventListener("click", () => acting($("replay-some"), $("dead-note"), async () => {
    const ids = [...dead.picked];
    const answers = await Promise.allSettled(ids.map(retry));
    dead.picked.clear();
    const failed = answers.filter((answer) => answer.status === "rejected");
    setTimeout(loadDead, 50);
    return `${many(ids.length - failed.length, "task")} queued again.${failed.length ? ` ${failed[0].reason.message}` : ""}`;
  }));
  $("replay-all").addEventListener("click", async () => {
    if (!(await isSure(`Run ${deadWords()} again? Each gets its full number of attempts.`, "Replay all", "main"))) return;
    acting($("replay-all"), $("dead-note"), async () => {
      const { replayed } = await net.change("POST", "/dead/replay", {});
      dead.page = 0;
      setTimeout(loadDead, 50);
      return `${many(replayed, "task")} queued again.`;
    });
  });
  $("purge").addEventListener("click", async () => {
    if (!(await isSure(`Remove ${deadWords()}? Nobody can restore their data and errors.`, "Remove all", "bad"))) return;
    acting($("purge"), $("dead-note"), async () => {
      const { removed } = await net.change("DELETE", "/dead");
      setTimeout(loadDead, 300);
      return `${many(removed, "task")} removed.`;
    });
  });

  // How many dead tasks there are, as the cluster counted last; until it has, as many as the list shows.
  function deadWords() {
    const last = tasks.sums.at(-1);
    if (last && last.states) return many(last.states.dead, "dead task");
    const isAll = !dead.cursor && dead.page === 0;
    return `${isAll ? "" : "more than "}${many(dead.rows.length, "dead task")}`;
  }

  function isSure(question, yes, tone) {
    const dialog = $("sure");
    say($("sure-text"), question);
    say($("sure-yes"), yes);
    mark($("sure-yes"), "class", tone);
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
  }

  // ---- one task

  let shownId = "";
  let shownText = "";
  let taskTimer = 0;

  function openTask(id) {
    shownText = "";
    loadTask(id);
  }

  function closeTask() {
    shownId = "";
  }

  async function loadTask(id) {
    clearTimeout(taskTimer);
    shownId = id;
    let task = null;
    let text = "";
    try {
      ({ body: task, text } = await net.readAsText(`/tasks/${encodeURIComponent(id)}`));
    } catch (error) {
      if (shownId !== id) return;
      $("task").replaceChildren(back(), el("h1", {}, "This task cannot be shown"), el("p", { class: "note wide" }, error.message));
      if (!(error instanceof net.Refused)) taskTimer = setTimeout(() => loadTask(id), 1500);
      return;
    }
    if (shownId !== id || $("view-task").hidden) return;
    if (text !== shownText) {
      shownText = text;
      showTask(task, exact.fieldsOf(text));
    }
    if (!TERMINAL.includes(task.state)) taskTimer = setTimeout(() => loadTask(id), document.hidden ? 4000 : 700);
  }

  const back = () => el("p", { class: "note" }, el("a", { href: "#/tasks" }, "All tasks"));

  // `texts`: each field of the task as the node wrote it, for what must be shown to the last digit.
  function showTask(task, texts) {
    const box = $("task");
    const focused = document.activeElement && box.contains(document.activeElement) ? document.activeElement.id : "";
    const isOver = TERMINAL.includes(task.state);
    box.replaceChildren(
      back(),
      el("div", { class: "heading" },
        el("h1", {}, `${task.type}: `, el("span", { class: TONE[task.state] }, task.state)),
        el("p", { class: "actions" }, ...actions(task))),
      el("p", { class: "mono dim" }, task.id),
      task.progress === null || isOver ? "" : progressBar(task.progress, texts.progress),
      el("dl", { class: "facts" }, ...facts(task)),
      el("div", { class: "blocks" },
        el("div", {}, el("h2", {}, "History"), el("ol", { class: "history", id: "history" }, ...historyOf(task))),
        el("div", {}, el("h2", {}, "Data"), pre(texts.data),
          ...(task.error === null ? [] : [el("h2", {}, "Error"), errorBlock(task.error, texts.error)]),
          ...(task.state === "succeeded" ? [el("h2", {}, "Result"), pre(texts.result)] : []))));
    if (focused && $(focused)) $(focused).focus();
  }

  function actions(task) {
    const note = el("span", { role: "status" });
    const button = (label, name, work) => {
      const node = el("button", { class: name, id: `act-${name}` }, label);
      node.addEventListener("click", () => acting(node, note, async () => {
        await work();
        loadTask(task.id);
      }));
      return node;
    };
    if (task.state === "dead") return [note, button("Replay", "main", () => retry(task.id))];
    if (task.state === "cancelled") return [note, button("Queue again", "main", () => retry(task.id))];
    if (task.state === "succeeded") return [note];
    return [note, button("Cancel task", "bad", () => net.change("DELETE", `/tasks/${task.id}`))];
  }

  function facts(task) {
    const hasValue = (value) => value !== null && value !== undefined && value !== "";
    const fact = (name, value) => hasValue(value) && el("div", {}, el("dt", {}, name), el("dd", {}, String(value)));
    const wait = task.started_at_ms && task.queued_at_ms ? task.started_at_ms - task.queued_at_ms : null;
    const level = PRIORITIES[task.priority];
    return [
      fact("Queue", task.queue),
      fact("Priority", level ? `${task.priority} (${level})` : task.priority),
      fact("Node", task.node_id),
      fact("Attempt", `${task.attempt} of ${task.max_attempts}`),
      fact("Deliveries", task.delivery),
      fact("Queued", task.queued_at_ms && clock(task.queued_at_ms)),
      fact("Runs at", task.run_at_ms && clock(task.run_at_ms)),
      fact("Waited", wait !== null && wait >= 0 ? span(wait) : null),
      fact("Ran for", took(task) === null ? null : span(took(task))),
      fact("Key", task.key),
      task.traceparent && el("div", {}, el("dt", {}, "Trace"), el("dd", { class: "mono" }, traceOf(task))),
    ].filter(Boolean);
  }

  function traceOf(task) {
    const id = task.traceparent.split("-")[1];
    return task.trace_url ? el("a", { href: task.trace_url, target: "_blank", rel: "noopener" }, id) : id;
  }

  function progressBar(progress, text) {
    const isCounted = progress && typeof progress.done === "number" && progress.total;
    const share = isCounted ? progress.done / progress.total : progress;
    if (typeof share !== "number") return el("p", {}, `Progress: ${text}`);
    return el("p", {}, el("progress", { max: 1, value: share, "aria-label": "Progress" }), ` ${Math.round(share * 100)} %`);
  }

  const pre = (text = "null") => el("pre", { tabindex: "0" }, exact.laidOut(text));

  function errorBlock(error, whole) {
    const trace = error && error.traceback ? `\n\n${error.traceback}` : "";
    const text = typeof error === "object" && error ? `${error.type}: ${error.message}${trace}` : exact.laidOut(whole);
    return el("pre", { tabindex: "0", id: "error" }, text);
  }

  // ---- its history

  const messageOf = ({ error }) => (error ? error.message : "");
  const errorOf = ({ error }) => (error ? `${error.type}: ${error.message}` : "");

  // How an entry is told: its tone, the words for what happened, and why.
  const ENDED = {
    retrying: (entry) => ["warn", entry.error && entry.error.type === "Timeout" ? "ran out of time" : "failed", errorOf(entry)],
    released: () => ["", "given back unfinished", "Its node stopped, or could not start it. This attempt does not count."],
    dead: (entry) => ["bad", "failed for the last time", errorOf(entry)],
    lost: (entry) => [
      "bad", "lost with its node", `${entry.node_id || "Its node"} died or was fenced while it ran the task. The task was queued again.`,
    ],
    cancelled: (entry) => ["", "cancelled", messageOf(entry)],
    replayed: (entry) => ["", "queued again by hand", messageOf(entry)],
    refused: (entry) => [
      "warn", "a late outcome was refused", `${entry.node_id || "A node"} ${messageOf(entry)}, but had lost the task before.`,
    ],
  };

  // As in a ULID, the first ten letters of an id are the time at which a gateway made it.
  const bornMs = (id) => [...id.slice(0, 10)].reduce((ms, letter) => ms * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".indexOf(letter), 0);

  function historyOf(task) {
    const entries = task.history || [];
    const isWhole = !entries.length || entries[0].delivery <= 1;
    const first = isWhole
      ? line("", "Submitted", clock(bornMs(task.id)), `to queue ${task.queue}`)
      : line("", "Earlier attempts", "", "A history keeps its last 20 entries only.");
    return [first, ...entries.map(entryLine), nowLine(task)].filter(Boolean);
  }

  function line(tone, title, when, why) {
    return el("li", { "data-tone": tone || null },
      el("b", {}, title), " ", el("span", { class: "when" }, when), why ? el("span", { class: "why" }, why) : null);
  }

  function entryLine(entry) {
    const [tone, what, why] = (ENDED[entry.outcome] || (() => ["", entry.outcome, ""]))(entry);
    const isNoAttempt = entry.outcome === "replayed" || entry.outcome === "refused" || (entry.outcome === "cancelled" && !entry.attempt);
    const ran = entry.started_at_ms ? ` after ${span(entry.at_ms - entry.started_at_ms)}` : "";
    const where = entry.node_id ? ` on ${names.short(entry.node_id)}` : "";
    const title = isNoAttempt ? what[0].toUpperCase() + what.slice(1) : `Attempt ${entry.attempt ?? "–"}${where}: ${what}${ran}`;
    return line(tone, title, `${clock(entry.at_ms)}${entry.delivery ? `, delivery ${entry.delivery}` : ""}`, why);
  }

  // What the task does now, or that it succeeded. The entries say how an attempt failed.
  function nowLine(task) {
    const attempt = `Attempt ${task.attempt}${task.node_id ? ` on ${names.short(task.node_id)}` : ""}`;
    const ran = took(task) === null ? "" : ` after ${span(took(task))}`;
    const at = task.run_at_ms ? `at ${clock(task.run_at_ms)}` : "";
    switch (task.state) {
      case "succeeded": return line("good", `${attempt}: succeeded${ran}`, `${clock(task.finished_at_ms)}, delivery ${task.delivery}`);
      case "running": return line("live", `${attempt}: running`, `since ${clock(task.started_at_ms)}, delivery ${task.delivery}`);
      case "retrying": return line("live", "Will run again", at);
      case "scheduled": return line("live", "Will run", at);
      case "queued": return line("live", "Waiting for a free slot", "");
      default: return null;
    }
  }

  // ---- submit

  $("open-submit").addEventListener("click", () => {
    say($("submit-note"), "");
    $("submit").showModal();
  });
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }

  $("submit-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const data = $("s-data").value.trim();
    try {
      if (data) JSON.parse(data); // the node gets the text, to the last digit
    } catch (error) {
      say($("submit-note"), `The data is not JSON: ${error.message}`);
      return;
    }
    $("submit-go").disabled = true;
    try {
      await submit(data);
    } catch (error) {
      say($("submit-note"), error.message);
    }
    $("submit-go").disabled = false;
  });

  async function submit(data) {
    const options = { type: $("s-type").value.trim() };
    if ($("s-priority").value) options.priority = $("s-priority").value;
    if ($("s-delay").value) options.delay_s = Number($("s-delay").value);
    if ($("s-attempts").value) options.max_attempts = Number($("s-attempts").value);
    // Without data the handler's default counts, which is not what null says.
    const body = data ? exact.withField(options, "data", data) : JSON.stringify(options);
    const times = Math.max(1, Math.min(10000, Number($("s-count").value) || 1));
    if (times === 1) {
      const task = await net.change("POST", "/tasks", body);
      $("submit").close();
      location.hash = `#/tasks/${task.id}`;
      return;
    }
    const answer = await net.change("POST", "/tasks/batch", `[${Array(times).fill(body)}]`);
    if (answer.rejected) {
      const { message } = answer.results.find((result) => result.error).error;
      throw new Error(`${count(answer.accepted)} accepted, ${count(answer.rejected)} rejected: ${message}`);
    }
    $("submit").close();
    loadList();
  }

  return tasks;
})();
