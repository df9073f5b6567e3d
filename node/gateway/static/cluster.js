"use strict";
// The cluster: its ring, its members, its timeline, and what is wrong now.

const cluster = (() => {
  const { $, el, svg, say, mark, many, count, clock, shorten, list, names, hues } = base;

  const cluster = {
    // What the page knows:
    view: null, // the answer of /cluster
    health: null, // the answer of /health
    healthMs: 0, // when that was asked for
    // What it does:
    takeView,
    takeEvent,
    tellStories,
    showRing,
    showMembers,
    showStories,
    showNow,
    showSilence,
  };

  const VERDICTS = {
    healthy: ["good", "healthy"],
    cut_from_redis: ["warn", "cut off from Redis"],
    cut_from_peers: ["warn", "cut off from its peers"],
    dead: ["bad", "dead"],
    suspect: ["warn", "suspected"],
    left: ["dim", "left"],
  };
  const MEANS = {
    cut_from_redis: "It takes no new tasks, and keeps those that it runs until its lease runs out.",
    cut_from_peers: "It keeps working, because Redis still hears from it.",
    dead: "Other nodes run its tasks.",
  };
  const EVIDENCE = {
    refused: "connection refused", silent: "no answer", stalled: "process hangs", superseded: "started again",
    fenced: "session ended in Redis",
  };
  const PEERS = { alive: "alive", suspect: "suspected", dead: "dead", leaving: "leaving", left: "left in good order" };

  function takeView(view) {
    const was = cluster.view;
    if (!was || was.node_id !== view.node_id || was.members.length !== view.members.length) isUpToDate = false;
    cluster.view = view;
    noteCuts(view);
    names.learn(view.members.map((member) => member.node_id));
    for (const member of [...view.members].sort((a, b) => (a.node_id < b.node_id ? -1 : 1))) hues.get(member.node_id);
  }

  // ---- the ring

  const MIDDLE = 210;
  const SHARDS_RADIUS = 185;
  const NODES_RADIUS = 142;
  const LABELS_MAX = 12; // with more nodes on the ring, their names have no room
  let arcs = [];
  let order = []; // the nodes on the ring

  function point(radius, turn) {
    const angle = (turn - 0.25) * 2 * Math.PI;
    return [MIDDLE + radius * Math.cos(angle), MIDDLE + radius * Math.sin(angle)];
  }

  function showRing(view) {
    showArcs(view);
    showDots(view);
    const leader = leaderOf(view);
    const alive = countAlive(view);
    say($("ring-big"), String(alive));
    say($("ring-small"), `of ${view.members.length} alive`);
    say($("ring-leader"), leader ? `${shorten(names.short(leader), 18)} leads` : "no leader");
    const shares = view.members.map((member) => [member.node_id, owned(view, member.node_id)]).filter(([, n]) => n);
    const each = shares.length > 12 ? `${shares.length} nodes share them` : list(shares.map(([id, n]) => `${id} has ${n}`));
    const text = `${many(arcs.length, "shard")} on a ring: ${each}. ${alive} of ${many(view.members.length, "member")} alive.`;
    mark($("ring"), "aria-label", text);
  }

  function buildArcs(shards) {
    const gap = Math.min(0.0011, 0.1 / shards);
    arcs = Array.from({ length: shards }, (_, n) => {
      const [x1, y1] = point(SHARDS_RADIUS, n / shards + gap);
      const [x2, y2] = point(SHARDS_RADIUS, (n + 1) / shards - gap);
      const size = `${SHARDS_RADIUS} ${SHARDS_RADIUS}`;
      return svg("path", { class: "arc", d: `M${x1.toFixed(2)} ${y1.toFixed(2)}A${size} 0 0 1 ${x2.toFixed(2)} ${y2.toFixed(2)}` });
    });
    $("arcs").replaceChildren(...arcs);
  }

  function showArcs(view) {
    const owners = Object.entries(view.shards).sort((a, b) => a[0] - b[0]).map(([, owner]) => owner);
    if (arcs.length !== owners.length) buildArcs(owners.length);
    owners.forEach((owner, n) => {
      const arc = arcs[n];
      const was = arc.getAttribute("data-owner") || "";
      if (was === owner) return;
      mark(arc, "data-owner", owner || null);
      if (owner) arc.style.setProperty("--hue", hues.get(owner));
      if (was) {
        arc.classList.add("moved");
        setTimeout(() => arc.classList.remove("moved"), 1200);
      }
    });
  }

  function showDots(view) {
    const isShown = (member) => !isGone(stateOf(member)) || order.includes(member.node_id) || view.members.length <= 24;
    const nodes = view.members.filter(isShown).map((member) => member.node_id);
    if (nodes.join(" ") !== order.join(" ")) {
      order = nodes;
      $("dots").replaceChildren(...nodes.map((nodeId, n) => dotOf(nodeId, n, nodes.length)));
    }
    const leader = leaderOf(view);
    const byId = new Map(view.members.map((member) => [member.node_id, member]));
    for (const dot of $("dots").children) {
      const member = byId.get(dot.getAttribute("data-id"));
      if (!member) continue;
      mark(dot, "data-verdict", stateOf(member));
      mark(dot.children[1], "visibility", member.node_id === leader ? "visible" : "hidden");
      const label = dot.querySelector("text");
      if (label) say(label, shorten(names.short(member.node_id), 11));
      say(dot.querySelector("title"), `${member.node_id}: ${owned(view, member.node_id)} shards`);
    }
  }

  function dotOf(nodeId, n, nodes) {
    const [x, y] = point(NODES_RADIUS, n / nodes);
    const size = nodes <= LABELS_MAX ? 13 : nodes <= 40 ? 8 : 4.5;
    // A label stands beside its dot, towards the middle; near the top and the bottom of the ring, below or above it.
    const side = (x - MIDDLE) / NODES_RADIUS;
    const where = Math.abs(side) > 0.4
      ? { x: x - Math.sign(side) * (size + 11), y, class: side > 0 ? "at-end" : "at-start" }
      : { x, y: y - Math.sign(y - MIDDLE) * (size + 17) };
    const dot = svg("g", { class: "node", "data-id": nodeId, "--hue": hues.get(nodeId) },
      svg("circle", { cx: x, cy: y, r: size }),
      svg("circle", { class: "crown", cx: x, cy: y, r: size + 4, visibility: "hidden" }),
      nodes <= LABELS_MAX ? svg("text", where) : null,
      svg("title", {}));
    pickOnHover(dot, nodeId);
    return dot;
  }

  function owned(view, nodeId) {
    if (view.counted !== view.shards) {
      view.counted = view.shards;
      view.owned = {};
      for (const owner of Object.values(view.shards)) view.owned[owner] = (view.owned[owner] || 0) + 1;
    }
    return view.owned[nodeId] || 0;
  }

  const leaderOf = (view) => (view.leader ? view.leader.node_id : "");
  const countAlive = (view) => view.members.filter((member) => member.state === "alive").length;
  const isGone = (state) => state === "dead" || state === "left";

  function stateOf(member) {
    if (member.state === "left") return "left";
    return member.state === "suspect" && member.verdict === "healthy" ? "suspect" : member.verdict;
  }

  function pickOnHover(node, nodeId) {
    node.addEventListener("pointerenter", () => pick(nodeId));
    node.addEventListener("pointerleave", () => pick(""));
  }

  function pick(nodeId) {
    $("ring").classList.toggle("picked", Boolean(nodeId));
    for (const arc of arcs) arc.classList.toggle("own", arc.getAttribute("data-owner") === nodeId);
    for (const dot of $("dots").children) dot.classList.toggle("own", dot.getAttribute("data-id") === nodeId);
  }

  // ---- the members

  const rows = new Map(); // node_id -> the parts of its row

  function showMembers(view) {
    const nodes = new Set(view.members.map((member) => member.node_id));
    for (const member of view.members) {
      if (!rows.has(member.node_id)) rows.set(member.node_id, memberRow(member.node_id));
      showMember(rows.get(member.node_id), member, view);
    }
    for (const id of [...rows.keys()]) if (!nodes.has(id)) rows.delete(id);
    const trs = [...nodes].map((id) => rows.get(id).tr);
    const body = $("members");
    if (body.children.length !== trs.length || trs.some((tr, n) => body.children[n] !== tr)) body.replaceChildren(...trs);
  }

  function memberRow(nodeId) {
    const cell = (label, name = "n") => el("td", { class: name, "data-label": label });
    const row = {
      name: el("span"),
      tag: el("span", { class: "tag", hidden: true }),
      lead: el("span", { class: "tag", hidden: true }, "leader"),
      session: el("span", { class: "session" }),
      verdict: el("span", { class: "verdict" }),
      words: el("span", { class: "words" }),
      load: el("span"),
      fill: el("i"),
      queued: cell("Queued"),
      shards: cell("Shards"),
      rtt: cell("RTT"),
      incarnation: cell("Incarnation"),
    };
    const bar = el("span", { class: "bar", "aria-hidden": "true" }, row.fill);
    row.tr = el("tr", { "--hue": hues.get(nodeId) },
      el("th", { scope: "row" }, el("span", { class: "swatch", "aria-hidden": "true" }), row.name, row.lead, row.tag, row.session),
      el("td", { class: "both" }, row.verdict, row.words),
      el("td", { class: "load", "data-label": "Running / slots" }, row.load, bar),
      row.queued, row.shards, row.rtt, row.incarnation);
    pickOnHover(row.tr, nodeId);
    return row;
  }

  function showMember(row, member, view) {
    const state = stateOf(member);
    const [tone, verdict] = VERDICTS[state] || ["", member.verdict];
    mark(row.tr, "class", isGone(state) ? "gone" : null);
    say(row.name, member.node_id);
    row.lead.hidden = member.node_id !== leaderOf(view);
    say(row.lead, view.leader ? `leader, epoch ${view.leader.epoch}` : "");
    row.tag.hidden = member.node_id !== view.node_id;
    say(row.tag, net.base === net.HOME ? "this page" : "asked now");
    say(row.session, member.session.slice(member.session.lastIndexOf("/") + 1));
    mark(row.verdict, "class", `verdict ${tone}`);
    say(row.verdict, verdict);
    say(row.words, [witnesses(member, view), MEANS[state === "left" ? "healthy" : member.verdict]].filter(Boolean).join(". "));
    const slots = Object.values(member.slots || {}).reduce((sum, n) => sum + n, 0);
    const load = isGone(state) ? null : member.load;
    const doing = load && (load.stalled ? " · blocked" : load.leaving ? " · leaving" : "");
    say(row.load, load ? `${count(load.running)} / ${count(slots)}${doing}` : "–");
    row.fill.style.transform = `scaleX(${load && slots ? Math.min(1, load.running / slots) : 0})`;
    say(row.queued, load ? count(Object.values(load.queues).reduce((sum, queue) => sum + queue.queued, 0)) : "–");
    say(row.shards, count(owned(view, member.node_id)));
    say(row.rtt, member.rtt_ms === null ? "–" : `${member.rtt_ms.toFixed(1)} ms`);
    say(row.incarnation, member.incarnation);
  }

  function witnesses(member, view) {
    const me = view.members.find((other) => other.node_id === view.node_id);
    const age = member.redis_age_s;
    const redis = {
      live: "live",
      stale: age === null ? "no heartbeat" : `no heartbeat for ${age.toFixed(1)} s`,
      gone: "session ended",
      unknown: !me || me.redis === "live" ? "not known yet" : `${names.short(view.node_id)} cannot ask it`,
    }[member.redis] || member.redis;
    const isAccused = member.state === "suspect" || member.state === "dead";
    const by = member.by ? `, says ${names.short(member.by)}` : "";
    const evidence = isAccused ? ` (${EVIDENCE[member.evidence] || member.evidence}${by})` : "";
    return `peers: ${PEERS[member.state] || member.state}${evidence} · Redis: ${redis}`;
  }

  // ---- the timeline

  const STORIES_MAX = 60;
  const EVENTS_MAX = 1500;
  const openedMs = Date.now();
  const events = new Map(); // id -> event
  const shown = new Map(); // story id -> {text, item}
  let timeline = []; // the stories, newest first
  let isUpToDate = false; // whether the timeline has every event

  function takeEvent(event) {
    events.set(event.id, event);
    isUpToDate = false;
    if (events.size > EVENTS_MAX) {
      const oldest = [...events.values()].sort((a, b) => a.at_ms - b.at_ms).slice(0, EVENTS_MAX / 5);
      for (const { id } of oldest) events.delete(id);
    }
  }

  function tellStories() {
    if (!isUpToDate) timeline = stories.tell(events.values(), cluster.view ? cluster.view.node_id : "");
    isUpToDate = true;
  }

  // Redis confirms a death some milliseconds after the peers declared it. Until this time has passed, a difference between
  // the two is no cut.
  const LASTS_MS = 800;
  const cuts = new Set(); // sessions that are cut off from Redis

  // Nobody reports a cut from Redis: the node cannot write it there, and no other node has to act. So the page makes an event
  // of what it sees.
  function noteCuts(view) {
    const now = Date.now();
    const note = (kind, { node_id, session }, at_ms) =>
      takeEvent({ id: `${kind}:${session}:${at_ms}`, kind, node_id, session, seen_by: view.node_id, at_ms });
    for (const member of view.members) {
      const ageMs = 1000 * (member.redis_age_s || 0);
      const isCut = member.verdict === "cut_from_redis" && member.redis === "stale" && ageMs >= LASTS_MS;
      if (isCut && !cuts.has(member.session)) {
        cuts.add(member.session);
        note("redis_silent", member, Math.round(now - ageMs));
      } else if (member.verdict === "healthy" && cuts.delete(member.session)) note("redis_heard", member, now);
    }
  }

  function showStories() {
    const newest = timeline.slice(0, STORIES_MAX);
    $("stories-empty").hidden = newest.length > 0;
    const items = newest.map((story) => {
      const text = JSON.stringify(story);
      const was = shown.get(story.id);
      if (was && was.text === text) return was.item;
      const isNew = story.at_ms > openedMs;
      const item = storyItem(story, isNew && !was);
      if (isNew && story.tone === "bad") say($("said"), story.title);
      shown.set(story.id, { text, item });
      return item;
    });
    const ids = new Set(newest.map((story) => story.id));
    for (const id of [...shown.keys()]) if (!ids.has(id)) shown.delete(id);
    const box = $("stories");
    if (box.children.length !== items.length || items.some((item, n) => box.children[n] !== item)) box.replaceChildren(...items);
  }

  function storyItem(story, isFresh) {
    const after = (ms) => (ms < 10000 ? `+${ms} ms` : `+${(ms / 1000).toFixed(1)} s`);
    const steps = story.steps.map(({ ms, text, end }) =>
      el("li", {}, el("span", { class: "ms" }, after(ms)), el("span", { class: end ? "end" : null }, text)));
    const time = el("time", { datetime: new Date(story.at_ms).toISOString() }, clock(story.at_ms));
    return el("li", { class: isFresh ? "story fresh" : "story", "data-tone": story.tone || null },
      el("h3", {}, el("span", {}, story.title), time),
      story.why ? el("p", { class: "why" }, story.why) : null,
      steps.length ? el("ol", { class: "steps" }, ...steps) : null);
  }

  // ---- what is wrong now

  const NEWS_MS = 120000; // a death stands among the problems for this time, or until the node is back
  const GROWTH_WINDOW = 30; // sums
  const GROWTH_WINDOW_MIN = 15;
  const since = new Map(); // message of a problem -> when the page first read it

  // All problems, the worst first. A flaw of the setup (no replica, say) exists all the time, so it is a note and no alarm.
  function wrong() {
    const now = Date.now();
    const weight = (problem) => (problem.isNote ? 3 : { fatal: 0, error: 1, warning: 2 }[problem.severity]);
    return [...unhealthy(now), ...deaths(now), ...deadLetters(), ...growth()].sort((a, b) => weight(a) - weight(b));
  }

  function unhealthy(now) {
    const problems = (cluster.health && cluster.health.problems) || [];
    for (const message of [...since.keys()]) if (!problems.some((problem) => problem.message === message)) since.delete(message);
    for (const { message } of problems) if (!since.has(message)) since.set(message, now);
    return problems
      .filter(({ code, message }) => !code.startsWith("cut_") || now - since.get(message) >= LASTS_MS)
      .map((problem) => ({ ...problem, isNote: problem.severity === "warning" }));
  }

  function deaths(now) {
    const isNews = (story) => story.tone === "bad" && story.isFenced && now - story.at_ms < NEWS_MS;
    return (cluster.view ? cluster.view.members : [])
      .filter((member) => member.verdict === "dead" && member.state !== "left")
      .map((member) => timeline.find((story) => story.node === member.node_id && isNews(story)))
      .filter(Boolean)
      .map(({ title }) => ({
        severity: "error",
        message: `${title}.`,
        hint: "Look into its log for the cause. You may start it again at any time.",
      }));
  }

  function deadLetters() {
    const last = tasks.sums.at(-1);
    const dead = last && last.states ? last.states.dead : 0;
    if (!dead) return [];
    return [{
      severity: "warning",
      message: `${many(dead, "task")} ended as dead letters.`,
      hint: "Read their errors under Dead letters, fix the cause, then replay them.",
    }];
  }

  function growth() {
    const sums = tasks.sums.slice(-GROWTH_WINDOW).filter((sum) => sum.states);
    if (sums.length < GROWTH_WINDOW_MIN) return [];
    const [first, last] = [sums[0], sums.at(-1)];
    const grown = last.states.queued - first.states.queued;
    const perSecond = grown / ((last.at_ms - first.at_ms) / 1000);
    if (!(grown > 50 && perSecond > 2)) return [];
    return [{
      severity: "warning",
      message: `The queues grow by ${count(Math.round(perSecond))} tasks a second: more tasks arrive than the nodes finish.`,
      hint: "Add nodes or slots (--queues NAME:SLOTS), or submit fewer tasks.",
    }];
  }

  function showNow() {
    if (!cluster.view) return;
    const problems = wrong();
    const isFine = !problems.length || problems[0].isNote;
    if (isFine) showFine(cluster.view);
    else showProblem(problems[0]);
    showMore(isFine ? problems : problems.slice(1));
  }

  function showFine(view) {
    const alive = countAlive(view);
    const gone = view.members.filter((member) => member.verdict === "dead" && member.state !== "left");
    const { leader } = view;
    const leads = leader ? `${names.short(leader.node_id)} leads (epoch ${leader.epoch})` : "there is no leader yet";
    mark($("now"), "data-tone", "good");
    say($("now-head"), "Nothing is wrong.");
    say($("now-what"), `${many(alive, "node")} ${alive === 1 ? "is" : "are"} alive, and ${leads}.`);
    say($("now-hint"), gone.length ? goneWords(gone) : "Every shard has an owner. Peers and Redis hear from every member.");
  }

  function goneWords(gone) {
    const who = list(gone.slice(0, 4).map((member) => names.short(member.node_id))) + (gone.length > 4 ? " and others" : "");
    const [its, it] = gone.length === 1 ? ["its", "it"] : ["their", "them"];
    return `${who} died; other nodes took over ${its} work. You may start ${it} again at any time.`;
  }

  function showProblem({ severity, message, hint }) {
    mark($("now"), "data-tone", severity === "warning" ? "warn" : "bad");
    say($("now-head"), message);
    say($("now-what"), "");
    say($("now-hint"), hint);
  }

  let moreShown = "";

  function showMore(problems) {
    $("now-more").hidden = !problems.length;
    const areNotes = problems.every((problem) => problem.isNote);
    const text = areNotes ? `${many(problems.length, "warning")} to fix before production` : `and ${problems.length} more`;
    say($("now-more-count"), text);
    const key = JSON.stringify(problems);
    if (key === moreShown) return;
    moreShown = key;
    $("now-list").replaceChildren(...problems.map(({ message, hint }) => el("li", {}, message, " ", el("span", {}, hint))));
  }

  function showSilence() {
    showProblem({
      severity: "fatal",
      message: "No node answers.",
      hint: "This page keeps trying. Check that a node is running: scripts/launch_cluster.sh status.",
    });
    say($("now-what"), "What you see is the last known state.");
    $("now-more").hidden = true;
  }

  return cluster;
})();
