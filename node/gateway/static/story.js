"use strict";
// From events to what happened, in words for somebody who has never heard of gossip.
//
// Pure: a list of events in, a list of stories out, newest first. Events about one life of a node that follow each other
// are one story; what it led to (shards that moved, another leader) is told with it. Each node tells what it saw itself,
// so a sentence can say who saw it, and how many milliseconds later than the first.

const APART_MS = 60000; // between two stories about the same session
const SEEN_MAX = 4; // nodes named in one sentence
const LED_TO_MS = 2500; // what follows within this time is told as a consequence
const ABOUT = new Set([
  "node_started", "node_draining", "connection_ended", "connection_refused", "member_joined", "member_alive", "member_leaving",
  "member_suspect", "member_dead", "member_left", "session_fenced", "session_reaped", "main_stalled", "main_recovered", "session_renewed",
  "redis_silent", "redis_heard",
]);
const BECAUSE = {
  refused: "its port refuses connections, so its process is gone",
  silent: "nothing answers, not even its host",
  stalled: "its machine answers and the process does not: it hangs",
  superseded: "it was started again, and its new life takes its place",
  fenced: "its session was ended in Redis",
};
const CONFIRMED = {
  refused: "Redis confirms: nobody listens on its channel any more",
  superseded: "Redis confirms: nobody listens on its channel any more",
  silent: "Redis confirms: its heartbeat stands still",
  stalled: "Redis confirms: its heartbeat stands still",
  lease: "Redis alone: its heartbeat has stood still for the whole lease",
};
const SILENT = "its last heartbeat in Redis; its peers still hear from it";

function tellStories(events, viewer = "") {
  const sorted = [...events].sort((a, b) => a.at_ms - b.at_ms);
  const open = new Map(); // session -> its latest story
  const all = [];
  const epochs = new Set();
  for (const event of sorted) {
    if (ABOUT.has(event.kind)) {
      const session = event.kind === "session_renewed" ? event.was : event.session || `${event.node_id}/`;
      let story = open.get(session) || (event.session ? null : latestOf(all, event.node_id));
      const isBirth = event.kind === "node_started" || event.kind === "member_joined";
      const isNew = !story || event.kind === "redis_silent" || event.at_ms - story.last > APART_MS || (isBirth ? story.isOver : story.isBirth);
      if (isNew) {
        story = { id: `${session}@${event.id}`, node: event.node_id, session, at_ms: event.at_ms, last: event.at_ms, events: [], moved: [], led: [], isBirth };
        all.push(story);
      }
      open.set(session, story);
      story.isOver = story.isOver || event.kind === "member_dead" || event.kind === "session_fenced" || event.kind === "member_left";
      story.last = event.at_ms;
      story.events.push(event);
      if (event.kind.startsWith("redis_")) takeIn(all, story, event);
    } else if (event.kind === "shards_moved") {
      if (viewer && event.seen_by !== viewer) continue; // every node computes the same for itself
      const cause = latest(all, event, () => true);
      if (cause) cause.moved.push(event);
      else all.push(alone(event));
    } else if (event.kind === "leader_elected") {
      if (epochs.has(event.epoch)) continue;
      epochs.add(event.epoch);
      const cause = latest(all, event, (story) => story.isOver || story.node === event.node_id);
      if (cause) cause.led.push(event);
      else all.push(alone(event));
    } else if (event.kind === "leader_lost" && (!viewer || event.seen_by === viewer)) {
      all.push(alone(event));
    }
  }
  return all.map(inWords).filter(Boolean).sort((a, b) => b.at_ms - a.at_ms);
}

// What happened last before this event, if it was so shortly before that it may be why.
function latest(all, event, fits) {
  const recent = all.filter((story) => story.session && event.at_ms - story.last <= LED_TO_MS && fits(story));
  return recent.reduce((best, story) => (!best || story.last >= best.last ? story : best), null);
}

// A page hears of a cut later than of the shards that moved for it.
function takeIn(all, story, event) {
  const isOfIt = (other) => !other.session && other.events[0].kind === "shards_moved" && event.at_ms - other.at_ms <= LED_TO_MS;
  for (const other of all.filter(isOfIt)) {
    all.splice(all.indexOf(other), 1);
    story.moved.push(other.events[0]);
  }
}

const latestOf = (all, node) => all.findLast((story) => story.node === node);

function alone(event) {
  return { id: event.id, node: event.node_id, session: "", at_ms: event.at_ms, last: event.at_ms, events: [event], moved: [], led: [] };
}

function inWords(story) {
  const name = names.short(story.node);
  const has = (kind) => story.events.filter((event) => event.kind === kind);
  const first = (kind) => has(kind)[0];
  const dead = first("member_dead");
  const fenced = first("session_fenced");
  const start = Math.min(...story.events.map((event) => event.at_ms));
  const at = (event) => Math.max(0, event.at_ms - start);
  const steps = [];
  const step = (event, text, end) => steps.push({ ms: at(event), text, end });
  const seenBy = (found) => {
    const by = new Map();
    for (const event of found) if (!by.has(event.by || event.seen_by)) by.set(event.by || event.seen_by, at(event));
    const words = [...by].map(([node, ms], n) => (n ? `${names.short(node)} (+${ms} ms)` : names.short(node)));
    return list(words.length > SEEN_MAX ? [...words.slice(0, SEEN_MAX - 1), `${words.length - SEEN_MAX + 1} others`] : words);
  };
  const told = { id: story.id, at_ms: start, node: story.node, steps };

  if (dead || fenced) {
    const evidence = (dead || fenced).evidence;
    const ended = has("connection_ended");
    const refused = has("connection_refused");
    const suspects = has("member_suspect");
    if (first("redis_silent")) step(first("redis_silent"), SILENT);
    if (ended.length) step(ended[0], `connections to it ended, noticed by ${seenBy(ended)}`);
    if (refused.length) step(refused[0], `new connections were refused, seen by ${seenBy(refused)}`);
    const isPlain = suspects.length && (!dead || suspects[0].evidence !== dead.evidence);
    if (suspects.length && (!dead || at(suspects[0]) <= at(dead))) step(suspects[0], `suspected by ${seenBy(suspects)}${isPlain ? `: ${BECAUSE[suspects[0].evidence] || "it does not answer"}` : ""}`);
    if (dead) step(dead, `its peers hold it dead: ${BECAUSE[dead.evidence] || dead.evidence}`);
    const reaped = has("session_reaped");
    // Several may find the tombstone written; nothing was taken before it was, whoever's word arrived first.
    if (fenced) step(reaped.length && reaped[0].at_ms < fenced.at_ms ? reaped[0] : fenced, `${CONFIRMED[fenced.evidence] || "Redis confirms"}. Fenced by ${names.short(fenced.by)}: what it still reports cannot count`);
    for (const event of story.led) step(event, `${names.short(event.node_id)} leads from now on (epoch ${event.epoch})`);
    moved(story, step);
    const tasks = reaped.reduce((sum, event) => sum + (event.tasks || 0), 0);
    if (reaped.length) step(reaped.at(-1), `${many(tasks, "task")} it was running ${tasks === 1 ? "is" : "are"} queued again, for others to run`, true);
    told.tone = "bad";
    told.isFenced = Boolean(fenced);
    const how = { refused: "is gone", stalled: "hangs", silent: "is silent", superseded: "was started again", lease: "let its lease run out" }[evidence] || "is gone";
    const done = reaped.at(-1) || fenced;
    if (evidence === "superseded") told.tone = "warn";
    told.title = done
      ? `${name} ${how}${reaped.length ? `; its work goes on after ${span(at(done))}` : fenced ? `; ${evidence === "lease" ? "fenced" : "both witnesses agreed"} after ${span(at(done))}` : ""}`
      : `${name} ${how}: held dead by its peers, not by Redis yet`;
    if (!fenced) told.why = "Only one witness so far: it keeps its tasks.";
  } else if (first("redis_silent")) {
    const heard = has("redis_heard").at(-1);
    step(first("redis_silent"), SILENT);
    moved(story, step);
    if (heard) step(heard, "Redis hears from it again: it takes tasks as before", true);
    else told.why = "One witness alone: it takes no new tasks, and keeps what it runs until its lease is over.";
    told.tone = heard ? "good" : "warn";
    told.title = heard ? `${name} was cut off from Redis, and is back` : `${name} is cut off from Redis`;
  } else if (first("member_suspect")) {
    const suspects = has("member_suspect");
    const back = first("member_alive");
    const ended = has("connection_ended");
    if (ended.length) step(ended[0], `connections to it ended, noticed by ${seenBy(ended)}`);
    step(suspects[0], `suspected by ${seenBy(suspects)}: ${BECAUSE[suspects[0].evidence] || "it does not answer"}`);
    if (back) step(back, "it answered: the suspicion is refuted, and nothing was taken from it", true);
    told.tone = back ? "good" : "warn";
    told.title = back ? `${name} was suspected, and lives` : `${name} is suspected`;
  } else if (first("member_left") || first("member_leaving") || first("node_draining")) {
    const draining = first("node_draining");
    const leaving = first("member_leaving");
    const left = first("member_left");
    if (draining) step(draining, `it stops claiming and finishes what it runs (${many(draining.tasks || 0, "task")})`);
    else if (leaving) step(leaving, "it says that it leaves, and takes no new tasks");
    moved(story, step);
    if (left) step(left, "it left, with nothing in flight", true);
    told.tone = "good";
    told.title = left ? `${name} left in good order` : `${name} is leaving`;
  } else if (first("session_renewed")) {
    told.tone = "warn";
    told.title = `${name} goes on under a new session`;
    told.why = "Its old one was ended while it was away. What it still ran under it cannot count.";
  } else if (first("main_stalled")) {
    told.tone = first("main_recovered") ? "good" : "warn";
    step(first("main_stalled"), "its event loop does not tick: a handler blocks it. It gets no new tasks");
    if (first("main_recovered")) step(first("main_recovered"), "it ticks again", true);
    told.title = first("main_recovered") ? `${name} was blocked` : `${name} is blocked`;
  } else if (first("node_started") || first("member_joined")) {
    const started = first("node_started");
    const joined = has("member_joined");
    if (started) step(joined.length && joined[0].at_ms < started.at_ms ? joined[0] : started, "it started");
    if (joined.length) step(joined[0], `taken in by ${list([...new Set(joined.map((event) => names.short(event.seen_by)))])}`);
    for (const event of story.led) step(event, `it leads (epoch ${event.epoch})`);
    moved(story, step);
    told.tone = "good";
    told.title = `${name} joined`;
    if (steps.length < 2) told.steps = [];
  } else if (first("leader_elected")) {
    told.title = `${name} leads (epoch ${first("leader_elected").epoch})`;
  } else if (first("leader_lost")) {
    told.tone = "warn";
    told.title = `${name} knows of no leader`;
  } else if (first("shards_moved")) {
    told.title = shardWords(first("shards_moved"));
  } else {
    return null; // a connection that ended, and nothing came of it
  }
  told.steps.sort((a, b) => a.ms - b.ms);
  return told;
}

function moved(story, step) {
  for (const event of story.moved) step(event, shardWords(event));
}

function shardWords(event) {
  const to = event.to || {};
  const total = Object.values(to).reduce((sum, n) => sum + n, 0);
  const who = Object.entries(to).sort((a, b) => b[1] - a[1]);
  if (!who.length) return `nobody looks after ${many(event.shards, "shard")}: no node is able to`;
  if (who.length === 1) return `${names.short(who[0][0])} looks after ${many(total, "shard")} more`;
  if (who.length > 6) return `${who.length} nodes look after ${many(total, "shard")} from now on`;
  return `${many(total, "shard")} ${total === 1 ? "is" : "are"} looked after by ${list(who.map(([node, n]) => `${names.short(node)} (${n})`))} from now on`;
}
