"use strict";
// Small functions that every other script uses. They write text into the page as text, never as HTML.
//
// Each script shows one object to the others, and keeps the rest to itself.

const base = (() => {
  const $ = (id) => document.getElementById(id);

  function el(tag, attributes, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  function svg(tag, attributes, ...children) {
    return fill(document.createElementNS($("ring").namespaceURI, tag), attributes, children);
  }

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name.startsWith("--")) node.style.setProperty(name, value); // a style attribute would need 'unsafe-inline'
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  // Writes only what changes: the same text again would cost a layout, and screen readers would repeat it.
  function say(node, value) {
    const text = String(value ?? "");
    if (node.textContent !== text) node.textContent = text;
  }

  function mark(node, name, value) {
    if (value === null || value === undefined || value === false) {
      if (node.hasAttribute(name)) node.removeAttribute(name);
    } else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }

  const many = (n, one, more) => `${count(n)} ${n === 1 ? one : more || one + "s"}`;
  const count = (n) => (n ?? 0).toLocaleString("en");
  const pad = (n, width = 2) => String(n).padStart(width, "0");

  function clock(ms) {
    const at = new Date(ms);
    const today = at.toDateString() === new Date().toDateString();
    const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
    return today ? time : `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time}`;
  }

  function span(ms) {
    if (ms === null || ms === undefined) return "–";
    if (ms < 1) return `${+ms.toFixed(ms < 0.1 ? 2 : 1)} ms`;
    if (ms < 1000) return `${ms < 10 ? +ms.toFixed(1) : Math.round(ms)} ms`;
    if (ms < 60000) return `${+(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
    if (ms < 3600000) return `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
    return `${Math.floor(ms / 3600000)} h ${Math.round((ms % 3600000) / 60000)} min`;
  }

  const shorten = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  // The text of a header as UTF-8: fetch takes a character for each byte.
  const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

  // "a, b and c"
  function list(words) {
    return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
  }

  // Short names of nodes: where all run on one host, the port alone tells them apart.
  const names = {
    host: "",
    learn(nodeIds) {
      const hosts = new Set(nodeIds.map((id) => id.slice(0, id.lastIndexOf(":"))));
      names.host = hosts.size === 1 && nodeIds.length > 1 ? [...hosts][0] : "";
    },
    short: (id) => (names.host && id && id.startsWith(names.host + ":") ? id.slice(names.host.length) : id),
  };

  // The colour of each node; it stays the same while the page is open. The first ones differ most.
  const hues = {
    first: [255, 150, 62, 20, 310, 200, 105, 285],
    of: new Map(),
    get(id) {
      if (!hues.of.has(id)) {
        const n = hues.of.size;
        hues.of.set(id, n < hues.first.length ? hues.first[n] : Math.round((n * 137.508) % 360));
      }
      return hues.of.get(id);
    },
  };

  return { $, el, svg, say, mark, many, count, pad, clock, span, shorten, asBytes, list, names, hues };
})();
