"use strict";
// From events to what happened, in words for somebody who has never heard of gossip.
//
// Pure: a list of events in, a list of stories out, newest first. Events about one life of a node that follow each other
// are one story; what it led to (shards that moved, another leader) is told with it. Each node tells what it saw itself,
// so a sentence can say who saw it, and how many milliseconds later than the first.

const stories = (() => {
  const { many, span, list, names } = base;

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
  const CUT = "One witness alone: it takes no new tasks, and keeps what it runs until its lease is over.";

  function tell(events, viewer = "") {
    const sorted = [...events].sort((a, b) => a.at_ms - b.at_ms);
    const open = new Map(); // session -> its latest story
    const all = [];
    const epochs = new Set();
    for (const event of sorted) {
      if (ABOUT.has(event.kind)) {
        const session = event.kind === "session_renewed" ? event.was : event.session || `${event.node_id}/`;
        let story = open.get(session) || (event.session ? null : latestOf(all, event.node_id));
        const isBirth = event.kind === "node_started" || event.kind === "member_joined";
        const isAnother = () => event.at_ms - story.last > APART_MS || (isBirth ? story.isOver : story.isBirth);
        if (!story || event.kind === "redis_silent" || isAnother()) {
          story = begun(`${session}@${event.id}`, session, event);
          story.isBirth = isBirth;
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

  function begun(id, session, { node_id, at_ms }) {
    return { id, node: node_id, session, at_ms, last: at_ms, events: [], moved: [], led: [] };
  }

  function alone(event) {
    return { ...begun(event.id, "", event), events: [event] };
  }

  // ---- in words

  // The steps of a story by the kind of their events: (the events of the kind, the tale) to [event, text, is the last word] of each.
  const STEPS = {
    redis_silent: ([event]) => [[event, SILENT]],
    redis_heard: (heard) => [[heard.at(-1), "Redis hears from it again: it takes tasks as before", true]],
    connection_ended: (ended, tale) => [[ended[0], `connections to it ended, noticed by ${tale.seenBy(ended)}`]],
    connection_refused: (refused, tale) => [[refused[0], `new connections were refused, seen by ${tale.seenBy(refused)}`]],
    member_suspect: (suspects, tale) => {
      const dead = tale.first("member_dead");
      if (dead && dead.at_ms < suspects[0].at_ms) return [];
      const because = dead && dead.evidence === suspects[0].evidence ? "" : `: ${BECAUSE[suspects[0].evidence] || "it does not answer"}`;
      return [[suspects[0], `suspected by ${tale.seenBy(suspects)}${because}`]];
    },
    member_alive: ([event]) => [[event, "it answered: the suspicion is refuted, and nothing was taken from it", true]],
    member_dead: ([event]) => [[event, `its peers hold it dead: ${BECAUSE[event.evidence] || event.evidence}`]],
    session_fenced: ([event], tale) => {
      // Several may find the tombstone written; nothing was taken before it was, whoever's word arrived first.
      const reaped = tale.first("session_reaped");
      const confirmed = CONFIRMED[event.evidence] || "Redis confirms";
      const text = `${confirmed}. Fenced by ${names.short(event.by)}: what it still reports cannot count`;
      return [[reaped && reaped.at_ms < event.at_ms ? reaped : event, text]];
    },
    session_reaped: (reaped) => {
      const tasks = reaped.reduce((sum, event) => sum + (event.tasks || 0), 0);
      const text = `${many(tasks, "task")} it was running ${tasks === 1 ? "is" : "are"} queued again, for others to run`;
      return [[reaped.at(-1), text, true]];
    },
    node_started: ([started], tale) => {
      const joined = tale.first("member_joined");
      return [[joined && joined.at_ms < started.at_ms ? joined : started, "it started"]];
    },
    member_joined: (joined) => {
      const by = new Set(joined.map((event) => names.short(event.seen_by)));
      return [[joined[0], `taken in by ${list([...by])}`]];
    },
    node_draining: ([event]) => [[event, `it stops claiming and finishes what it runs (${many(event.tasks || 0, "task")})`]],
    member_leaving: ([event], tale) => (tale.first("node_draining") ? [] : [[event, "it says that it leaves, and takes no new tasks"]]),
    member_left: ([event]) => [[event, "it left, with nothing in flight", true]],
    main_stalled: ([event]) => [[event, "its event loop does not tick: a handler blocks it. It gets no new tasks"]],
    main_recovered: ([event]) => [[event, "it ticks again", true]],
    leader_elected: (elected, tale) => elected.map((event) => {
      const who = tale.death ? `${names.short(event.node_id)} leads from now on` : "it leads";
      return [event, `${who} (epoch ${event.epoch})`];
    }),
    shards_moved: (moved) => moved.map((event) => [event, shardWords(event)]),
  };

  // What a story is about: the first row of which one kind is among its events. `steps` are told in this order where two
  // happened in the same millisecond; `title`, `tone` and `why` take the tale.
  const PLOTS = [
    {
      kinds: ["member_dead", "session_fenced"],
      steps: ["redis_silent", "connection_ended", "connection_refused", "member_suspect", "member_dead", "session_fenced",
        "leader_elected", "shards_moved", "session_reaped"],
      title: deathTitle,
      tone: (tale) => (tale.death.evidence === "superseded" ? "warn" : "bad"),
      why: (tale) => (tale.first("session_fenced") ? undefined : "Only one witness so far: it keeps its tasks."),
    },
    {
      kinds: ["redis_silent"],
      steps: ["redis_silent", "shards_moved", "redis_heard"],
      title: (tale) => `${tale.name} ${tale.first("redis_heard") ? "was cut off from Redis, and is back" : "is cut off from Redis"}`,
      tone: goodAfter("redis_heard"),
      why: (tale) => (tale.first("redis_heard") ? undefined : CUT),
    },
    {
      kinds: ["member_suspect"],
      steps: ["connection_ended", "member_suspect", "member_alive"],
      title: (tale) => (tale.first("member_alive") ? `${tale.name} was suspected, and lives` : `${tale.name} is suspected`),
      tone: goodAfter("member_alive"),
    },
    {
      kinds: ["member_left", "member_leaving", "node_draining"],
      steps: ["node_draining", "member_leaving", "shards_moved", "member_left"],
      title: (tale) => (tale.first("member_left") ? `${tale.name} left in good order` : `${tale.name} is leaving`),
      tone: () => "good",
    },
    {
      kinds: ["session_renewed"],
      steps: [],
      title: (tale) => `${tale.name} goes on under a new session`,
      tone: () => "warn",
      why: () => "Its old one was ended while it was away. What it still ran under it cannot count.",
    },
    {
      kinds: ["main_stalled"],
      steps: ["main_stalled", "main_recovered"],
      title: (tale) => (tale.first("main_recovered") ? `${tale.name} was blocked` : `${tale.name} is blocked`),
      tone: goodAfter("main_recovered"),
    },
    {
      kinds: ["node_started", "member_joined"],
      steps: ["node_started", "member_joined", "leader_elected", "shards_moved"],
      stepsMin: 2,
      title: (tale) => `${tale.name} joined`,
      tone: () => "good",
    },
    { kinds: ["leader_elected"], steps: [], title: (tale) => `${tale.name} leads (epoch ${tale.first("leader_elected").epoch})` },
    { kinds: ["leader_lost"], steps: [], title: (tale) => `${tale.name} knows of no leader`, tone: () => "warn" },
    { kinds: ["shards_moved"], steps: [], title: (tale) => shardWords(tale.first("shards_moved")) },
  ];

  const ENDED_HOW = {
    refused: "is gone", stalled: "hangs", silent: "is silent", superseded: "was started again", lease: "let its lease run out",
  };

  function goodAfter(kind) {
    return (tale) => (tale.first(kind) ? "good" : "warn");
  }

  // One story, asked by kind of event.
  class Tale {
    constructor(story) {
      this.name = names.short(story.node);
      this.start = Math.min(...story.events.map((event) => event.at_ms));
      this.events = [...story.events, ...story.moved, ...story.led];
      this.death = this.first("member_dead") || this.first("session_fenced");
    }

    of(kind) {
      return this.events.filter((event) => event.kind === kind);
    }

    first(kind) {
      return this.events.find((event) => event.kind === kind);
    }

    after(event) {
      return Math.max(0, event.at_ms - this.start);
    }

    // "n1, n3 (+3 ms) and 2 others": each node once, by what it saw first.
    seenBy(events) {
      const by = new Map();
      for (const event of events) if (!by.has(event.by || event.seen_by)) by.set(event.by || event.seen_by, this.after(event));
      const words = [...by].map(([node, ms], n) => (n ? `${names.short(node)} (+${ms} ms)` : names.short(node)));
      return list(words.length > SEEN_MAX ? [...words.slice(0, SEEN_MAX - 1), `${words.length - SEEN_MAX + 1} others`] : words);
    }
  }

  function inWords(story) {
    const plot = PLOTS.find(({ kinds }) => story.events.some((event) => kinds.includes(event.kind)));
    if (!plot) return null; // a connection that ended, and nothing came of it
    const tale = new Tale(story);
    const steps = plot.steps
      .filter((kind) => tale.first(kind))
      .flatMap((kind) => STEPS[kind](tale.of(kind), tale))
      .map(([event, text, end]) => ({ ms: tale.after(event), text, end }))
      .sort((a, b) => a.ms - b.ms);
    return {
      id: story.id,
      at_ms: tale.start,
      node: story.node,
      title: plot.title(tale),
      tone: plot.tone?.(tale),
      why: plot.why?.(tale),
      isFenced: Boolean(tale.first("session_fenced")),
      steps: steps.length < (plot.stepsMin || 1) ? [] : steps,
    };
  }

  function deathTitle(tale) {
    const { evidence } = tale.death;
    const fenced = tale.first("session_fenced");
    const reaped = tale.of("session_reaped").at(-1);
    const how = `${tale.name} ${ENDED_HOW[evidence] || "is gone"}`;
    if (reaped) return `${how}; its work goes on after ${span(tale.after(reaped))}`;
    if (fenced) return `${how}; ${evidence === "lease" ? "fenced" : "both witnesses agreed"} after ${span(tale.after(fenced))}`;
    return `${how}: held dead by its peers, not by Redis yet`;
  }

  function shardWords(event) {
    const to = event.to || {};
    const total = Object.values(to).reduce((sum, n) => sum + n, 0);
    const who = Object.entries(to).sort((a, b) => b[1] - a[1]);
    if (!who.length) return `nobody looks after ${many(event.shards, "shard")}: no node is able to`;
    if (who.length === 1) return `${names.short(who[0][0])} looks after ${many(total, "shard")} more`;
    if (who.length > 6) return `${who.length} nodes look after ${many(total, "shard")} from now on`;
    const each = list(who.map(([node, n]) => `${names.short(node)} (${n})`));
    return `${many(total, "shard")} ${total === 1 ? "is" : "are"} looked after by ${each} from now on`;
  }

  return { tell };
})();
