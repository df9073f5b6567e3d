"use strict";
// Turns events into stories: what happened, in words for somebody who has never heard of gossip.
//
// Pure: a list of events in, a list of stories out, newest first. Events about one life of a node that follow each other
// are one story, and the story includes its consequences: shards that moved, another leader. Each node reports only what
// it saw itself, so a sentence can say which node saw it, and how many milliseconds after the first one.

const stories = (() => {
  const { many, span, list, names } = base;

  const APART_MS = 60000; // a longer pause between two events of one session begins a new story
  const SEEN_MAX = 4; // nodes named in one sentence
  const OWNERS_MAX = 6; // new owners of shards named in one sentence
  const LED_TO_MS = 2500; // a change of shards or leader that follows within this time counts as a consequence
  const ABOUT = new Set([
    "node_started", "node_draining", "connection_ended", "connection_refused", "member_joined", "member_alive", "member_leaving",
    "member_suspect", "member_dead", "member_left", "session_fenced", "session_reaped", "main_stalled", "main_recovered",
    "session_renewed", "redis_silent", "redis_heard",
  ]);
  const BECAUSE = {
    refused: "its port refuses connections, so its process is gone",
    silent: "neither its process nor its host answers",
    stalled: "its host answers but its process does not, so the process hangs",
    superseded: "it was started again, and the new process takes its place",
    fenced: "its session in Redis has been ended",
  };
  const CONFIRMED = {
    refused: (name) => `Redis confirms: nothing listens on the channel of ${name} any more`,
    superseded: (name) => `Redis confirms: nothing listens on the channel of ${name} any more`,
    silent: (name) => `Redis confirms: the heartbeat of ${name} has stopped`,
    stalled: (name) => `Redis confirms: the heartbeat of ${name} has stopped`,
    lease: (name) => `Redis alone decides: the heartbeat of ${name} has stood still for a whole lease`,
  };

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
        if (viewer && event.seen_by !== viewer) continue; // every node computes the owners by itself, with the same result
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

  // The newest story that ended shortly enough before this event to be its cause.
  function latest(all, event, fits) {
    const recent = all.filter((story) => story.session && event.at_ms - story.last <= LED_TO_MS && fits(story));
    return recent.reduce((best, story) => (!best || story.last >= best.last ? story : best), null);
  }

  // The page notices a cut only after the shards have moved because of it: their move joins the story of the cut.
  function takeIn(all, story, event) {
    const isConsequence = (other) => !other.session && other.events[0].kind === "shards_moved" && event.at_ms - other.at_ms <= LED_TO_MS;
    for (const other of all.filter(isConsequence)) {
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

  // How each kind of event is told as steps of a story: a function of all events of the kind and of the tale, to a list of
  // [event, text, whether it ends the story].
  const STEPS = {
    redis_silent: ([event], tale) => [
      [event, `Redis received the last heartbeat of ${tale.name}, whose peers had not declared it dead`],
    ],
    redis_heard: (heard, tale) => [[heard.at(-1), `Redis heard from ${tale.name} again: ${tale.name} takes new tasks as before`, true]],
    connection_ended: (ended, tale) => [[ended[0], `${tale.seenBy(ended)} saw connections to ${tale.name} end`]],
    connection_refused: (refused, tale) => [[refused[0], `${tale.seenBy(refused)} saw ${tale.name} refuse new connections`]],
    member_suspect: (suspects, tale) => {
      const dead = tale.first("member_dead");
      if (dead && dead.at_ms < suspects[0].at_ms) return [];
      const text = `${tale.seenBy(suspects)} suspected ${tale.name}`;
      const { evidence } = suspects[0];
      return [[suspects[0], dead?.evidence === evidence ? text : `${text} because ${BECAUSE[evidence] || "it does not answer"}`]];
    },
    member_alive: ([event], tale) => [
      [event, `${tale.name} answered and refuted the suspicion; no task was taken from it`, true],
    ],
    member_dead: ([event], tale) => [
      [event, `The peers of ${tale.name} declared it dead: ${BECAUSE[event.evidence] || event.evidence}`],
    ],
    session_fenced: ([event], tale) => {
      // Several nodes may find the tombstone written. No task is taken before that, whichever node's event arrived first.
      const reaped = tale.first("session_reaped");
      const confirmed = CONFIRMED[event.evidence]?.(tale.name) || "Redis confirms";
      const text = `${confirmed}. ${names.short(event.by)} fenced ${tale.name}: its tasks may be given to others now`;
      return [[reaped && reaped.at_ms < event.at_ms ? reaped : event, text]];
    },
    session_reaped: (reaped, tale) => {
      const tasks = reaped.reduce((sum, event) => sum + (event.tasks || 0), 0);
      const text = tasks
        ? `${many(tasks, "task")} that ${tale.name} was running ${tasks === 1 ? "is" : "are"} queued again`
        : `${tale.name} was running no task, so none had to be queued again`;
      return [[reaped.at(-1), text, true]];
    },
    node_started: ([started], tale) => {
      const joined = tale.first("member_joined");
      return [[joined && joined.at_ms < started.at_ms ? joined : started, `${tale.name} started`]];
    },
    member_joined: (joined, tale) => {
      const by = new Set(joined.map((event) => names.short(event.seen_by)));
      return [[joined[0], `${list([...by])} accepted ${tale.name} as a member`]];
    },
    node_draining: ([event], tale) => [
      [event, `${tale.name} stopped taking tasks and finishes those that it runs (${many(event.tasks || 0, "task")})`],
    ],
    member_leaving: ([event], tale) =>
      tale.first("node_draining") ? [] : [[event, `${tale.name} announced that it is leaving, and takes no new tasks`]],
    member_left: ([event], tale) => [[event, `${tale.name} left with no task running`, true]],
    main_stalled: ([event], tale) => [
      [event, `The event loop of ${tale.name} stopped, because a handler blocks it; ${tale.name} gets no new tasks meanwhile`],
    ],
    main_recovered: ([event], tale) => [[event, `The event loop of ${tale.name} runs again`, true]],
    leader_elected: (elected) => elected.map((event) => [event, leaderWords(event)]),
    shards_moved: (moved) => moved.map((event) => [event, shardWords(event)]),
  };

  // The plots. A story has the first plot of which it has an event of `kinds`. The order of `steps` counts where two events
  // have the same millisecond. `title`, `tone` and `why` are functions of the tale; a plot with fewer than `stepsMin` steps
  // shows none.
  const PLOTS = [
    {
      kinds: ["member_dead", "session_fenced"],
      steps: ["redis_silent", "connection_ended", "connection_refused", "member_suspect", "member_dead", "session_fenced",
        "leader_elected", "shards_moved", "session_reaped"],
      title: deathTitle,
      tone: (tale) => (tale.death.evidence === "superseded" ? "warn" : "bad"),
      why: (tale) => (tale.first("session_fenced") ? undefined
        : `${tale.name} keeps its tasks until Redis confirms or its lease runs out.`),
    },
    {
      kinds: ["redis_silent"],
      steps: ["redis_silent", "shards_moved", "redis_heard"],
      title: (tale) => `${tale.name} ${tale.first("redis_heard") ? "was cut off from Redis and is back" : "is cut off from Redis"}`,
      tone: goodAfter("redis_heard"),
      why: (tale) => (tale.first("redis_heard") ? undefined
        : "Only Redis misses it: its peers have not declared it dead. "
          + "It takes no new tasks, and keeps those that it runs until its lease runs out."),
    },
    {
      kinds: ["member_suspect"],
      steps: ["connection_ended", "member_suspect", "member_alive"],
      title: (tale) => (tale.first("member_alive") ? `${tale.name} was suspected but is alive` : `${tale.name} is suspected`),
      tone: goodAfter("member_alive"),
      why: (tale) => (tale.first("member_alive") ? undefined : "No node takes tasks from another on suspicion alone."),
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
      title: (tale) => `${tale.name} continues under a new session`,
      tone: () => "warn",
      why: () => "Its old session was ended while it was away. Whatever it still reports for that session is refused.",
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
    { kinds: ["leader_elected"], steps: [], title: (tale) => leaderWords(tale.first("leader_elected")) },
    { kinds: ["leader_lost"], steps: [], title: (tale) => `${tale.name} knows of no leader`, tone: () => "warn" },
    { kinds: ["shards_moved"], steps: [], title: (tale) => shardWords(tale.first("shards_moved")) },
  ];

  const ENDED_HOW = {
    refused: "is gone", stalled: "hangs", silent: "does not answer", superseded: "was started again", lease: "lost its lease",
  };

  function goodAfter(kind) {
    return (tale) => (tale.first(kind) ? "good" : "warn");
  }

  // One story, to be asked for its events by their kind.
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

    // "n1, n3 (+3 ms) and 2 others": each node once, with the time of its first event.
    seenBy(events) {
      const by = new Map();
      for (const event of events) if (!by.has(event.by || event.seen_by)) by.set(event.by || event.seen_by, this.after(event));
      const words = [...by].map(([node, ms], n) => (n ? `${names.short(node)} (+${ms} ms)` : names.short(node)));
      return list(words.length > SEEN_MAX ? [...words.slice(0, SEEN_MAX - 1), `${words.length - SEEN_MAX + 1} others`] : words);
    }
  }

  function inWords(story) {
    const plot = PLOTS.find(({ kinds }) => story.events.some((event) => kinds.includes(event.kind)));
    if (!plot) return null; // a connection ended, and nothing followed from that
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
    const whose = evidence === "superseded" ? "the work of its old process was taken over" : "others took over its work";
    if (reaped) return `${how}; ${whose} after ${span(tale.after(reaped))}`;
    if (fenced && evidence === "lease") return `${how}; it was fenced after ${span(tale.after(fenced))}`;
    if (fenced) return `${how}; its peers and Redis agreed after ${span(tale.after(fenced))}`;
    return `The peers of ${tale.name} declared it dead; Redis has not confirmed it yet`;
  }

  function leaderWords(event) {
    return `${names.short(event.node_id)} became the leader (epoch ${event.epoch})`;
  }

  function shardWords(event) {
    const owners = Object.entries(event.to || {}).sort((a, b) => b[1] - a[1]);
    if (!owners.length) return `${many(event.shards, "shard")} ${event.shards === 1 ? "has" : "have"} no owner: no node is able to serve`;
    const total = owners.reduce((sum, [, n]) => sum + n, 0);
    const each = owners.map(([node, n]) => (owners.length === 1 ? names.short(node) : `${names.short(node)} (${n})`));
    return `${many(total, "shard")} moved to ${owners.length > OWNERS_MAX ? `${owners.length} nodes` : list(each)}`;
  }

  return { tell };
})();
