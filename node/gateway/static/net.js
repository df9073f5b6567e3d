"use strict";
// Talks to the cluster: to this page's own node while it answers, otherwise to another one.
//
// Any member answers reads, because members allow each other's pages to read. A change needs the page's own node; when it
// is away, the reader opens the page of another node. The stream is read with fetch, since an EventSource cannot carry
// the token.

const net = (() => {
  const { $, say, asBytes } = base;

  const HOME = location.origin;
  const SILENT_MS = 8000; // a stream that is silent for this long is dead: a node sends a comment every 5 s
  const CONNECT_MS = 2500;

  class Refused extends Error {
    constructor(status, error) {
      super(error.hint ? `${error.message} ${error.hint}` : error.message);
      this.status = status;
    }
  }

  const net = {
    // What the page knows of its node and of the others:
    HOME,
    base: HOME,
    others: [], // URLs of the other living members, from /cluster
    token: sessionStorage.getItem("rumor-token") || "",
    isLive: false,
    lastId: "",
    bytes: 0,
    // What main.js does when something arrives:
    onEvent: () => {}, // (name, data)
    onState: () => {},
    onToken: () => {},
    // What the other scripts call:
    Refused,
    headers,
    read,
    readAsText,
    change,
    follow,
  };

  function headers(more) {
    return net.token ? { ...more, Authorization: asBytes(`Bearer ${net.token}`) } : { ...more };
  }

  async function request(url, path, options = {}) {
    const signal = AbortSignal.timeout(options.timeoutMs || 10000);
    const sent = { method: options.method || "GET", headers: headers(options.headers), body: options.body, signal };
    const response = await fetch(url + path, sent);
    if (response.status === 401) askToken();
    const text = await response.text();
    const body = JSON.parse(text);
    if (!response.ok && body.error) throw new Refused(response.status, body.error);
    return { body, text };
  }

  // Reads from the current node. If it does not answer, the page moves on to another node and asks that one.
  async function read(path) {
    return (await readAsText(path)).body;
  }

  // The same, with the text of the answer beside its value.
  async function readAsText(path) {
    try {
      return await request(net.base, path, { timeoutMs: 4000 });
    } catch (error) {
      if (error instanceof Refused) throw error;
      const was = net.base;
      if (!(await findAnother())) throw new Error("No node answers.");
      if (net.base !== was) return request(net.base, path, { timeoutMs: 4000 });
      throw error;
    }
  }

  // `body`: a value, or the text of one.
  async function change(method, path, body) {
    if (net.base !== HOME) {
      throw new Error(`This page's own node does not answer. To change something, open the page of ${net.base.split("//")[1]}.`);
    }
    const options = { method, timeoutMs: 20000 };
    if (body !== undefined) {
      options.body = typeof body === "string" ? body : JSON.stringify(body);
      options.headers = { "Content-Type": "application/json" };
    }
    try {
      return (await request(HOME, path, options)).body;
    } catch (error) {
      if (error instanceof Refused) throw error;
      throw new Error("The node did not answer, but it may have done what you asked for. Look before you try again.");
    }
  }

  async function answers(url) {
    const mode = url === HOME ? "same-origin" : "cors";
    try {
      return (await fetch(url + "/livez", { signal: AbortSignal.timeout(CONNECT_MS), mode, headers: {} })).ok;
    } catch {
      return false;
    }
  }

  async function findAnother() {
    for (const url of new Set([net.base, HOME, ...net.others])) {
      if (await answers(url)) {
        go(url);
        return true;
      }
    }
    return false;
  }

  function go(url) {
    if (url !== net.base) {
      net.base = url;
      net.lastId = "";
    }
    net.onState();
  }

  // ---- the stream

  async function follow() {
    for (;;) {
      const was = net.base;
      try {
        await stream(was);
      } catch {
        // Whatever the reason: find a node that answers, and continue there.
      }
      net.isLive = false;
      net.onState();
      const waitMs = !(await findAnother()) ? 700 : net.base === was ? 400 : 0;
      if (waitMs) await new Promise((done) => setTimeout(done, waitMs));
    }
  }

  async function stream(url) {
    const control = new AbortController();
    let timer = setTimeout(() => control.abort(), CONNECT_MS);
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => control.abort(), SILENT_MS);
    };
    try {
      const more = net.lastId ? { "Last-Event-ID": net.lastId } : {};
      const response = await fetch(url + "/events", { headers: headers(more), signal: control.signal });
      if (response.status === 401) {
        askToken();
        throw new Error("token");
      }
      if (!response.ok) throw new Error(String(response.status));
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        alive();
        if (url !== net.base) return control.abort();
        if (!net.isLive) {
          net.isLive = true;
          net.onState();
        }
        net.bytes += value.length;
        const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
        rest = parts.pop();
        for (const part of parts) take(part);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  function take(text) {
    let name = "";
    let data = "";
    for (const line of text.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data = line.slice(6);
      else if (line.startsWith("id: ")) net.lastId = line.slice(4);
    }
    if (data) net.onEvent(name, JSON.parse(data));
  }

  // Once the page's own node is back, the page returns to it, because only that node takes changes from here.
  setInterval(async () => {
    if (net.base !== HOME && (await answers(HOME))) go(HOME);
  }, 3000);

  // ---- the token

  function askToken() {
    const door = $("door");
    if (door.open) return;
    say($("door-note"), net.token ? "The node refused that token." : "");
    door.showModal();
  }

  $("door-form").addEventListener("submit", () => {
    net.token = $("token").value;
    $("token").value = "";
    sessionStorage.setItem("rumor-token", net.token);
    net.onToken();
  });

  return net;
})();
