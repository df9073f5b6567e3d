"use strict";
// Draws the calls of this node from /openapi.json, each with a form to try it.
//
// The script writes text through textContent only, so nothing that a node answers can become markup.

const $ = (id) => document.getElementById(id);
const TOKEN = "rumor-token"; // the dashboard stores the token under the same name
const SHOWN_MAX = 200000; // characters of an answer that are shown
let api = null;

function make(tag, props = {}, ...children) {
  const { data = {}, ...rest } = props;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, data);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const access = () => ($("token").value ? { Authorization: `Bearer ${$("token").value}` } : {});
// The text of each header as UTF-8: fetch takes a character for each byte.
const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));
const asSent = (headers) => Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, asBytes(value)]));

async function load() {
  const where = $("calls");
  try {
    const response = await fetch("/openapi.json", { headers: asSent(access()) });
    const answer = await response.json();
    if (!response.ok) throw new Error(`${answer.error.message} ${response.status === 401 ? "Enter it above." : answer.error.hint}`);
    api = answer;
  } catch (error) {
    where.replaceChildren(make("p", { textContent: `This page could not read /openapi.json: ${error.message}` }));
    return;
  }
  $("about").textContent = api.info.description;
  const calls = [];
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, call] of Object.entries(methods)) calls.push(drawCall(path, method, call));
  where.replaceChildren(...calls);
  find();
  if (location.hash) openNamed(location.hash.slice(1));
}

function drawCall(path, method, call) {
  const inside = make("div", { className: "inside" });
  const box = make("details", { id: call.operationId, data: { words: `${method} ${path} ${call.summary}`.toLowerCase() } },
    make("summary", {},
      make("span", { className: "method", textContent: method.toUpperCase(), data: { method } }),
      make("span", { className: "path", textContent: path }),
      make("span", { className: "soft", textContent: call.summary })),
    inside);
  box.addEventListener("toggle", () => {
    if (!box.open) return;
    history.replaceState(null, "", `#${box.id}`);
    if (!inside.hasChildNodes()) inside.append(...drawInside(path, method, call).filter(Boolean));
  });
  return box;
}

function drawInside(path, method, call) {
  const parts = [];
  const body = call.requestBody?.content?.["application/json"];
  if (call.security?.some((scheme) => "token" in scheme)) {
    parts.push(make("p", { className: "soft", textContent: "Needs the API token if the node has one." }));
  }
  if (call.parameters?.length) {
    const row = ({ name, required, schema, description, in: place }) =>
      [name, `${place}${required ? ", required" : ""}`, inShort(schema), description || ""];
    parts.push(section("Parameters", rows(call.parameters.map(row), ["name", "in", "type", ""])));
  }
  if (body) {
    const title = `Body${call.requestBody.required ? "" : ", optional"}: ${inShort(body.schema)}`;
    parts.push(section(title, fields(body.schema)));
  }
  parts.push(section("Answers", make("div", { className: "answers" }, ...Object.entries(call.responses).map(drawAnswer))));
  parts.push(section("Try it", tryIt(path, method, call, body)));
  return parts;
}

const section = (title, content) => content && make("section", {}, make("h2", { textContent: title }), content);

function rows(entries, heads) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col", textContent: text })));
  const row = ([name, ...more]) => {
    const cells = more.map((text) => make("td", { textContent: text }));
    return make("tr", {}, make("td", {}, make("code", { textContent: name })), ...cells);
  };
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...entries.map(row)));
  return make("div", { className: "scroll" }, table);
}

function drawAnswer([status, answer]) {
  const [type, content] = Object.entries(answer.content || {})[0] || ["", {}];
  const head = make("summary", {},
    make("span", { className: "status", textContent: status, data: { kind: status[0] } }),
    ` ${answer.description} `,
    make("span", { className: "soft", textContent: type === "application/json" ? inShort(content.schema) : type }));
  const inside = [fields(content.schema)];
  for (const [name, header] of Object.entries(answer.headers || {})) {
    inside.push(make("p", { textContent: `${name}: ${header.description || ""}` }));
  }
  if (content.example !== undefined) inside.push(make("pre", { textContent: pretty(content.example) }));
  return make("details", {}, head, ...inside.filter(Boolean));
}

// ---- schemas

function resolved(schema) {
  const name = schema?.$ref?.split("/").pop();
  return name ? { name, ...api.components.schemas[name] } : schema || {};
}

const BOUNDS = [
  ["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["minLength", "length ≥"], ["maxLength", "length ≤"],
];

function inShort(schema) {
  const type = resolved(schema);
  if (type.name) return type.name;
  const choices = type.anyOf || type.oneOf;
  if (choices) return [...new Set(choices.map(inShort))].join(" or ");
  if (type.enum) return type.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (type.type === "array") return `list of ${inShort(type.items)}`;
  const isSaid = ([name]) => type[name] !== undefined && !(name === "minLength" && type[name] === 0);
  const bounds = BOUNDS.filter(isSaid).map(([name, sign]) => `${sign} ${type[name]}`);
  const word = Array.isArray(type.type) ? type.type.join(" or ") : type.type || "any JSON";
  const hasDefault = type.default !== undefined && type.default !== null;
  return [word, ...bounds].join(", ") + (hasDefault ? ` (default ${JSON.stringify(type.default)})` : "");
}

function fields(schema) {
  let type = resolved(schema);
  if (type.type === "array") type = resolved(type.items);
  if (type.anyOf) type = type.anyOf.map(resolved).find((choice) => choice.properties) || type;
  if (!type.properties) return null;
  const required = new Set(type.required || []);
  const row = ([name, field]) =>
    [name, required.has(name) ? "required" : "", inShort(field), field.description || resolved(field).description || ""];
  return rows(Object.entries(type.properties).map(row), ["field", "", "type", ""]);
}

// ---- trying

function tryIt(path, method, call, body) {
  const inputs = (call.parameters || []).map((parameter) => ({ parameter, input: inputFor(parameter) }));
  const text = body && make("textarea", { value: pretty(body.example ?? {}), spellcheck: false, ariaLabel: "Body" });
  const labels = inputs.map(({ parameter, input }) => make("label", {}, parameter.name, input));
  const form = make("form", { id: `try-${call.operationId}` }, ...labels);
  const send = make("button", { type: "submit", textContent: "Send" });
  send.setAttribute("form", form.id);
  const stop = make("button", { type: "button", textContent: "Stop", className: "quiet", hidden: true });
  const line = make("p", { role: "status" });
  const command = make("pre", { hidden: true });
  const answer = make("pre", { hidden: true });
  let control = null;
  stop.onclick = () => control?.abort();
  form.onsubmit = async (event) => {
    event.preventDefault();
    const { target, headers } = targetOf(path, inputs);
    if (text?.value.trim()) headers["Content-Type"] = "application/json";
    command.textContent = asCurl(method, target, headers, text?.value);
    command.hidden = false;
    answer.hidden = true;
    control = new AbortController();
    [send.disabled, stop.hidden] = [true, false];
    const sent = text?.value.trim() ? text.value : undefined;
    const options = { method: method.toUpperCase(), headers: asSent(headers), body: sent, signal: control.signal };
    await ask(target, options, line, answer);
    [send.disabled, stop.hidden] = [false, true];
  };
  return make("div", {}, form, text, make("div", { className: "buttons" }, send, stop), line, command, answer);
}

function inputFor({ schema, required }) {
  const choices = schema?.enum || schema?.anyOf?.find((choice) => choice.enum)?.enum;
  if (!choices) return make("input", { required: required === true, autocomplete: "off", spellcheck: false });
  return make("select", {}, ...["", ...choices].map((value) => make("option", { value, textContent: value })));
}

function targetOf(path, inputs) {
  const headers = { ...access() };
  const query = new URLSearchParams();
  let target = path;
  for (const { parameter: { name, in: place }, input: { value } } of inputs) {
    if (place === "path") target = target.replace(`{${name}}`, encodeURIComponent(value));
    else if (value !== "" && place === "query") query.set(name, value);
    else if (value !== "" && place === "header") headers[name] = value;
  }
  if (query.size) target += `?${query}`;
  return { target, headers };
}

async function ask(target, options, line, where) {
  line.textContent = "Waiting…";
  const began = performance.now();
  try {
    const response = await fetch(target, options);
    const status = make("span", { className: "status", textContent: response.status, data: { kind: String(response.status)[0] } });
    line.replaceChildren(status, ` ${response.statusText} after ${Math.round(performance.now() - began)} ms`);
    await pour(response, where);
  } catch (error) {
    line.append(error.name === "AbortError" ? " Stopped." : ` No answer: ${error.message}`);
  }
}

async function pour(response, where) {
  const isJson = (response.headers.get("Content-Type") || "").includes("json");
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    text += done ? decoder.decode() : decoder.decode(value, { stream: true });
    where.hidden = false;
    where.textContent = text.length > SHOWN_MAX ? `…${text.slice(-SHOWN_MAX)}` : text;
    if (done) break;
  }
  if (!isJson || text.length > SHOWN_MAX) return;
  try {
    JSON.parse(text); // NDJSON is no JSON, and stays as it is
    where.textContent = exact.laidOut(text);
  } catch { /* as it is */ }
}

function asCurl(method, target, headers, body) {
  const quoted = (value) => `'${String(value).replaceAll("'", "'\\''")}'`;
  const words = ["curl"];
  if (method !== "get") words.push(`-X ${method.toUpperCase()}`);
  words.push(quoted(location.origin + target));
  for (const [name, value] of Object.entries(headers)) {
    const isToken = name === "Authorization"; // a copied command must not hold the token itself
    words.push(isToken ? '-H "Authorization: Bearer $RUMOR_API_TOKEN"' : `-H ${quoted(`${name}: ${value}`)}`);
  }
  if (body?.trim()) words.push(`-d ${quoted(body.trim())}`);
  return words.join(" ");
}

const pretty = (value) => JSON.stringify(value, null, 2);

// ---- finding

function find() {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const box of document.querySelectorAll("main > details")) box.hidden = !words.every((word) => box.dataset.words.includes(word));
}

function openNamed(id) {
  const box = document.getElementById(id);
  if (box?.tagName === "DETAILS") {
    box.open = true;
    box.scrollIntoView();
  }
}

$("token").value = sessionStorage.getItem(TOKEN) || "";
$("token").addEventListener("change", () => { sessionStorage.setItem(TOKEN, $("token").value); if (!api) load(); });
$("find").addEventListener("input", find);
$("access").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", () => openNamed(location.hash.slice(1)));
load();
