"use strict";
// The cluster: ring, members, timeline, and what is wrong now.

const WORDS = {
  verdict: {
    healthy: ["good", "healthy"],
    cut_from_redis: ["warn", "cut off from Redis"],
    cut_from_peers: ["warn", "cut off from its peers"],
    dead: ["bad", "dead"],
  },
  means: {
    healthy: "",
    cut_from_redis: "Takes no new tasks, keeps what it runs until its lease is over.",
    cut_from_peers: "Keeps working: Redis still hears from it.",
    dead: "Both agree: its tasks run elsewhere.",
  },
  evidence: { refused: "connection refused", silent: "no answer", stalled: "it hangs", superseded: "started again", fenced: "ended in Redis" },
  peers: { alive: "alive", suspect: "suspected", dead: "dead", leaving: "leaving", left: "left in good order" },
};

const cluster = { view: null, health: null, healthMs: 0, events: new Map(), arcs: [], picked: "", order: [], told: [], isTold: false };

// ---- the ring

const MIDDLE = 210;
const point = (radius, turn) => {
  const angle = (turn - 0.25) * 2 * Math.PI;
  return [MIDDLE + radius * Math.cos(angle), MIDDLE + radius * Math.sin(angle)];
};

function buildArcs(shards) {
  const gap = Math.min(0.0011, 0.1 / shards);
  cluster.arcs = Array.from({ length: shards }, (_, n) => {
    const [x1, y1] = point(185, n / shards + gap);
    const [x2, y2] = point(185, (n + 1) / shards - gap);
    return svg("path", { class: "arc", d: `M${x1.toFixed(2)} ${y1.toFixed(2)}A185 185 0 0 1 ${x2.toFixed(2)} ${y2.toFixed(2)}` });
  });
  $("arcs").replaceChildren(...cluster.arcs);
}

function showRing(view) {
  const owners = Object.entries(view.shards).sort((a, b) => a[0] - b[0]).map(([, owner]) => owner);
  if (cluster.arcs.length !== owners.length) buildArcs(owners.length);
  let isFirst = false;
  owners.forEach((owner, n) => {
    const arc = cluster.arcs[n];
    const was = arc.getAttribute("data-owner") || "";
    if (was === owner) return;
    isFirst = isFirst || !was;
    mark(arc, "data-owner", owner || null);
    if (owner) arc.style.setProperty("--hue", hues.get(owner));
    if (was) {
      arc.classList.add("moved");
      setTimeout(() => arc.classList.remove("moved"), 1200);
    }
  });
  const shown = view.members.filter((member) => !(member.state === "left" || member.verdict === "dead") || cluster.order.includes(member.node_id) || view.members.length <= 24);
  const key = shown.map((member) => member.node_id).join(" ");
  if (key !== cluster.dotsKey) {
    cluster.dotsKey = key;
    cluster.order = shown.map((member) => member.node_id);
    const size = shown.length <= 12 ? 13 : shown.length <= 40 ? 8 : 4.5;
    $("dots").replaceChildren(...shown.map((member, n) => {
      const [x, y] = point(142, n / shown.length);
      const side = (x - MIDDLE) / 142; // beside its dot, towards the middle; below or above it near the top and bottom
      const isBeside = Math.abs(side) > 0.4;
      const where = isBeside ? { x: x - Math.sign(side) * (size + 11), y, class: side > 0 ? "at-end" : "at-start" } : { x, y: y - Math.sign(y - MIDDLE) * (size + 17) };
      const label = shown.length <= 12 ? svg("text", where) : null;
      const dot = svg("g", { class: "node", "data-id": member.node_id, "--hue": hues.get(member.node_id) },
        svg("circle", { cx: x, cy: y, r: size }), svg("circle", { class: "crown", cx: x, cy: y, r: size + 4, visibility: "hidden" }), label, svg("title", {}));
      dot.addEventListener("pointerenter", () => pick(member.node_id));
      dot.addEventListener("pointerleave", () => pick(""));
      return dot;
    }));
  }
  const leader = view.leader ? view.leader.node_id : "";
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
  const alive = view.members.filter((member) => member.state === "alive").length;
  say($("ring-big"), String(alive));
  say($("ring-small"), `of ${view.members.length} alive`);
  say($("ring-leader"), leader ? `${shorten(names.short(leader), 18)} leads` : "no leader");
  const shares = view.members.map((member) => [member.node_id, owned(view, member.node_id)]).filter(([, n]) => n);
  const words = shares.length > 12 ? `${shares.length} nodes share them` : list(shares.map(([id, n]) => `${id} has ${n}`));
  mark($("ring"), "aria-label", `${many(owners.length, "shard")} on a ring: ${words}. ${alive} of ${many(view.members.length, "member")} alive.`);
}

const shorten = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

function owned(view, nodeId) {
  if (view.counted !== view.shards) {
    view.counted = view.shards;
    view.owned = {};
    for (const owner of Object.values(view.shards)) view.owned[owner] = (view.owned[owner] || 0) + 1;
  }
  return view.owned[nodeId] || 0;
}

const stateOf = (member) => (member.state === "left" ? "left" : member.state === "suspect" && member.verdict === "healthy" ? "suspect" : member.verdict);

function pick(nodeId) {
  cluster.picked = nodeId;
  $("ring").classList.toggle("picked", Boolean(nodeId));
  for (const arc of cluster.arcs) arc.classList.toggle("own", arc.getAttribute("data-owner") === nodeId);
  for (const dot of $("dots").children) dot.classList.toggle("own", dot.getAttribute("data-id") === nodeId);
}

// ---- the members

const rows = new Map();

function memberRow(nodeId) {
  const cell = (label, name = "n") => el("td", { class: name, "data-label": label });
  const row = { name: el("span"), tag: el("span", { class: "tag", hidden: true }), lead: el("span", { class: "tag", hidden: true }, "leader"), session: el("span", { class: "session" }) };
  row.verdict = el("span", { class: "verdict" });
  row.words = el("span", { class: "words" });
  row.load = el("span");
  row.fill = el("i");
  row.queued = cell("Queued");
  row.shards = cell("Shards");
  row.rtt = cell("RTT");
  row.incarnation = cell("Incarnation");
  row.tr = el("tr", { "--hue": hues.get(nodeId) },
    el("th", { scope: "row" }, el("span", { class: "swatch", "aria-hidden": "true" }), row.name, row.lead, row.tag, row.session),
    el("td", { class: "both" }, row.verdict, row.words),
    el("td", { class: "load", "data-label": "Running / slots" }, row.load, el("span", { class: "bar", "aria-hidden": "true" }, row.fill)),
    row.queued, row.shards, row.rtt, row.incarnation);
  row.tr.addEventListener("pointerenter", () => pick(nodeId));
  row.tr.addEventListener("pointerleave", () => pick(""));
  return row;
}

function witnesses(member, view) {
  const me = view.members.find((one) => one.node_id === view.node_id);
  const age = member.redis_age_s;
  const redis = {
    live: "live",
    stale: `stale ${age === null ? "" : `for ${age.toFixed(1)} s`}`.trim(),
    gone: "ended",
    unknown: !me || me.redis === "live" ? "not known yet" : "cannot be asked from here",
  }[member.redis] || member.redis;
  const evidence = member.state === "suspect" || member.state === "dead" ? ` (${WORDS.evidence[member.evidence] || member.evidence}${member.by ? `, by ${names.short(member.by)}` : ""})` : "";
  return `peers: ${WORDS.peers[member.state] || member.state}${evidence} · Redis: ${redis}`;
}

function showMembers(view) {
  const leader = view.leader ? view.leader.node_id : "";
  const seen = new Set();
  const trs = [];
  for (const member of view.members) {
    seen.add(member.node_id);
    if (!rows.has(member.node_id)) rows.set(member.node_id, memberRow(member.node_id));
    const row = rows.get(member.node_id);
    const state = stateOf(member);
    const [tone, verdict] = state === "left" ? ["dim", "left"] : state === "suspect" ? ["warn", "suspected"] : WORDS.verdict[member.verdict] || ["", member.verdict];
    const isGone = state === "dead" || state === "left";
    mark(row.tr, "class", isGone ? "gone" : null);
    say(row.name, member.node_id);
    row.lead.hidden = member.node_id !== leader;
    say(row.lead, view.leader ? `leader, epoch ${view.leader.epoch}` : "");
    row.tag.hidden = member.node_id !== view.node_id;
    say(row.tag, net.base === HOME ? "this page" : "asked now");
    say(row.session, member.session.slice(member.session.lastIndexOf("/") + 1));
    mark(row.verdict, "class", `verdict ${tone}`);
    say(row.verdict, verdict);
    say(row.words, [witnesses(member, view), WORDS.means[isGone && state === "left" ? "healthy" : member.verdict]].filter(Boolean).join(". "));
    const slots = Object.values(member.slots || {}).reduce((sum, n) => sum + n, 0);
    const load = isGone ? null : member.load;
    say(row.load, load ? `${count(load.running)} / ${count(slots)}${load.stalled ? " · blocked" : load.leaving ? " · leaving" : ""}` : "–");
    row.fill.style.transform = `scaleX(${load && slots ? Math.min(1, load.running / slots) : 0})`;
    say(row.queued, load ? count(Object.values(load.queues).reduce((sum, queue) => sum + queue.queued, 0)) : "–");
    say(row.shards, count(owned(view, member.node_id)));
    say(row.rtt, member.rtt_ms === null ? "–" : `${member.rtt_ms.toFixed(1)} ms`);
    say(row.incarnation, member.incarnation);
    trs.push(row.tr);
  }
  for (const id of [...rows.keys()]) if (!seen.has(id)) rows.delete(id);
  const body = $("members");
  if (body.children.length !== trs.length || trs.some((tr, n) => body.children[n] !== tr)) body.replaceChildren(...trs);
}

// ---- the timeline

const STORIES_MAX = 60;
const EVENTS_MAX = 1500;
const told = new Map(); // story id -> {text, node}
const openedMs = Date.now();

function keep(event) {
  cluster.events.set(event.id, event);
  cluster.isTold = false;
  if (cluster.events.size > EVENTS_MAX) {
    const oldest = [...cluster.events.values()].sort((a, b) => a.at_ms - b.at_ms).slice(0, EVENTS_MAX / 5);
    for (const { id } of oldest) cluster.events.delete(id);
  }
}

// A node that is cut off from Redis cannot tell it there, and no other did anything: the page tells what it sees.
const cuts = new Set(); // sessions
function noteCuts(view) {
  const now = Date.now();
  const note = (kind, member, at_ms) => keep({ id: `${kind}:${member.session}:${at_ms}`, kind, node_id: member.node_id, session: member.session, seen_by: view.node_id, at_ms });
  for (const member of view.members) {
    const ageMs = 1000 * (member.redis_age_s || 0);
    if (member.verdict === "cut_from_redis" && member.redis === "stale" && ageMs >= LASTS_MS && !cuts.has(member.session)) {
      cuts.add(member.session);
      note("redis_silent", member, Math.round(now - ageMs));
    } else if (member.verdict === "healthy" && cuts.delete(member.session)) note("redis_heard", member, now);
  }
}

function showStories() {
  const found = cluster.told.slice(0, STORIES_MAX);
  $("stories-empty").hidden = found.length > 0;
  const items = found.map((story) => {
    const text = JSON.stringify(story);
    const was = told.get(story.id);
    if (was && was.text === text) return was.item;
    const isNew = story.at_ms > openedMs;
    const item = el("li", { class: isNew && !was ? "story fresh" : "story", "data-tone": story.tone || null },
      el("h3", {}, el("span", {}, story.title), el("time", { datetime: new Date(story.at_ms).toISOString() }, clock(story.at_ms))),
      story.why ? el("p", { class: "why" }, story.why) : null,
      story.steps.length ? el("ol", { class: "steps" }, ...story.steps.map((one) => el("li", {}, el("span", { class: "ms" }, one.ms < 10000 ? `+${one.ms} ms` : `+${(one.ms / 1000).toFixed(1)} s`), el("span", { class: one.end ? "end" : null }, one.text)))) : null);
    if (isNew && story.tone === "bad") say($("said"), story.title);
    told.set(story.id, { text, item });
    return item;
  });
  const wanted = new Set(found.map((story) => story.id));
  for (const id of [...told.keys()]) if (!wanted.has(id)) told.delete(id);
  const box = $("stories");
  if (box.children.length !== items.length || items.some((item, n) => box.children[n] !== item)) box.replaceChildren(...items);
}

// ---- what is wrong now

// Worst first. What only stands in the settings (no replica, say) is true all the time: it is minded, not wrong.
// Between a death for the peers and Redis's word on it lie some milliseconds: only what lasts is a cut.
const LASTS_MS = 800;
const since = new Map();

function wrong() {
  const told = ((cluster.health && cluster.health.problems) || []);
  const now = Date.now();
  for (const message of [...since.keys()]) if (!told.some((one) => one.message === message)) since.delete(message);
  for (const one of told) if (!since.has(one.message)) since.set(one.message, now);
  const lasting = told.filter((one) => !one.code.startsWith("cut_") || now - since.get(one.message) >= LASTS_MS);
  const found = lasting.map((one) => ({ ...one, isNote: one.severity === "warning" }));
  for (const member of cluster.view ? cluster.view.members : []) {
    const story = diedLately(member, now);
    if (story) found.push({ severity: "error", message: `${story.title}.`, hint: "Others have its shards and tasks. Start it again when you like." });
  }
  const sums = tasks.sums;
  const states = sums.length ? sums.at(-1).states : null;
  if (states && states.dead) {
    found.push({ severity: "warning", message: `${many(states.dead, "task")} ended as dead letters.`, hint: "Look at their errors under Dead letters; mend the cause, then replay them." });
  }
  const window = sums.slice(-30).filter((sum) => sum.states);
  if (window.length >= 15) {
    const grown = window.at(-1).states.queued - window[0].states.queued;
    const seconds = (window.at(-1).at_ms - window[0].at_ms) / 1000;
    if (grown > 50 && grown / seconds > 2) {
      found.push({ severity: "warning", message: `The queues grow by ${count(Math.round(grown / seconds))} tasks a second: more comes in than is finished.`, hint: "Add nodes or slots (--queues NAME:SLOTS), or submit less." });
    }
  }
  const weight = (one) => (one.isNote ? 3 : { fatal: 0, error: 1, warning: 2 }[one.severity]);
  return found.sort((a, b) => weight(a) - weight(b));
}

// Its death, while it is news and it has not come back.
const NEWS_MS = 120000;
function diedLately(member, now) {
  if (member.verdict !== "dead" || member.state === "left") return null;
  return cluster.told.find((story) => story.node === member.node_id && story.tone === "bad" && story.isFenced && now - story.at_ms < NEWS_MS) || null;
}

function showNow() {
  const found = wrong();
  const box = $("now");
  const view = cluster.view;
  if (!view) return;
  const alive = view.members.filter((member) => member.state === "alive").length;
  const gone = view.members.filter((member) => member.verdict === "dead" && member.state !== "left");
  const isFine = !found.length || found[0].isNote;
  if (isFine) {
    mark(box, "data-tone", "good");
    say($("now-head"), "Nothing is wrong.");
    say($("now-what"), `${many(alive, "node")} work${alive === 1 ? "s" : ""}, and ${view.leader ? `${names.short(view.leader.node_id)} leads (epoch ${view.leader.epoch})` : "there is no leader yet"}.`);
    say($("now-hint"), gone.length ? `${list(gone.slice(0, 4).map((member) => names.short(member.node_id)))}${gone.length > 4 ? " and others" : ""} died; the others took over ${gone.length === 1 ? "its" : "their"} shards and tasks. Start ${gone.length === 1 ? "it" : "them"} again when you like.` : "All shards have an owner; every member is alive for its peers and for Redis.");
  } else {
    const worst = found[0];
    mark(box, "data-tone", worst.severity === "warning" ? "warn" : "bad");
    say($("now-head"), worst.message);
    say($("now-what"), "");
    say($("now-hint"), worst.hint);
  }
  const more = isFine ? found : found.slice(1);
  $("now-more").hidden = !more.length;
  const minded = more.every((one) => one.isNote);
  say($("now-more-count"), minded ? `${many(more.length, "thing")} to mind before this is production` : `and ${more.length} more`);
  const key = JSON.stringify(more);
  if (key !== cluster.moreKey) {
    cluster.moreKey = key;
    $("now-list").replaceChildren(...more.map((one) => el("li", {}, one.message, " ", el("span", {}, one.hint))));
  }
}
