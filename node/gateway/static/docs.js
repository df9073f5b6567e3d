"use strict";
// The calls of this node, drawn from /openapi.json, each with a form that tries it.
//
// Everything is made with textContent: nothing that a node answers can become markup.

const $ = (id) => document.getElementById(id);
const TOKEN = "rumor-token"; // the dashboard keeps it under the same name
const SHOWN_MAX = 200000; // characters of an answer
let api = null;

function make(tag, props = {}, ...children) {
  const { data = {}, ...rest } = props;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, data);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const access = () => ($("token").value ? { Authorization: `Bearer ${$("token").value}` } : {});

async function load() {
  const where = $("calls");
  try {
    const response = await fetch("/openapi.json", { headers: access() });
    const told = await response.json();
    if (!response.ok) throw new Error(`${told.error.message} ${response.status === 401 ? "Enter it above." : told.error.hint}`);
    api = told;
  } catch (error) {
    where.replaceChildren(make("p", { textContent: `/openapi.json cannot be read: ${error.message}` }));
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
  if (call.security?.some((one) => "token" in one)) parts.push(make("p", { className: "soft", textContent: "Takes the API token, where the node has one." }));
  if (call.parameters?.length) parts.push(section("Parameters", rows(call.parameters.map((one) =>
    [one.name, `${one.in}${one.required ? ", required" : ""}`, inShort(one.schema), one.description || ""]), ["name", "in", "type", ""])));
  if (body) parts.push(section(`Body${call.requestBody.required ? "" : ", optional"}: ${inShort(body.schema)}`, fields(body.schema)));
  parts.push(section("Answers", make("div", { className: "answers" }, ...Object.entries(call.responses).map(drawAnswer))));
  parts.push(section("Try it", tryIt(path, method, call, body)));
  return parts;
}

const section = (title, content) => content && make("section", {}, make("h2", { textContent: title }), content);

function rows(found, heads) {
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", textContent: text })))));
  table.append(make("tbody", {}, ...found.map(([name, ...more]) =>
    make("tr", {}, make("td", {}, make("code", { textContent: name })), ...more.map((text) => make("td", { textContent: text }))))));
  return make("div", { className: "scroll" }, table);
}

function drawAnswer([status, answer]) {
  const [type, content] = Object.entries(answer.content || {})[0] || ["", {}];
  const head = make("summary", {}, make("span", { className: "status", textContent: status, data: { kind: status[0] } }), ` ${answer.description} `,
    make("span", { className: "soft", textContent: type === "application/json" ? inShort(content.schema) : type }));
  const inside = [fields(content.schema)];
  for (const [name, header] of Object.entries(answer.headers || {})) inside.push(make("p", { textContent: `${name}: ${header.description || ""}` }));
  if (content.example !== undefined) inside.push(make("pre", { textContent: pretty(content.example) }));
  return make("details", {}, head, ...inside.filter(Boolean));
}

// ---- schemas

function resolved(schema) {
  const name = schema?.$ref?.split("/").pop();
  return name ? { name, ...api.components.schemas[name] } : schema || {};
}

function inShort(schema) {
  const one = resolved(schema);
  if (one.name) return one.name;
  const choices = one.anyOf || one.oneOf;
  if (choices) return [...new Set(choices.map(inShort))].join(" or ");
  if (one.enum) return one.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (one.type === "array") return `list of ${inShort(one.items)}`;
  const bounds = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["minLength", "length ≥"], ["maxLength", "length ≤"]]
    .filter(([name]) => one[name] !== undefined && !(name === "minLength" && one[name] === 0)).map(([name, sign]) => `${sign} ${one[name]}`);
  const type = Array.isArray(one.type) ? one.type.join(" or ") : one.type || "any JSON";
  return [type, ...bounds].join(", ") + (one.default !== undefined && one.default !== null ? ` (default ${JSON.stringify(one.default)})` : "");
}

function fields(schema) {
  let one = resolved(schema);
  if (one.type === "array") one = resolved(one.items);
  if (one.anyOf) one = one.anyOf.map(resolved).find((choice) => choice.properties) || one;
  if (!one.properties) return null;
  const needed = new Set(one.required || []);
  return rows(Object.entries(one.properties).map(([name, field]) =>
    [name, needed.has(name) ? "required" : "", inShort(field), field.description || resolved(field).description || ""]), ["field", "", "type", ""]);
}

// ---- trying

function tryIt(path, method, call, body) {
  const inputs = (call.parameters || []).map((one) => {
    const input = one.schema?.enum || one.schema?.anyOf?.some((choice) => choice.enum)
      ? make("select", {}, make("option", { value: "", textContent: "" }), ...(one.schema.enum || one.schema.anyOf.find((choice) => choice.enum).enum).map((value) => make("option", { value, textContent: value })))
      : make("input", { required: one.required === true, autocomplete: "off", spellcheck: false });
    return { one, input };
  });
  const text = body && make("textarea", { value: pretty(body.example ?? {}), spellcheck: false, ariaLabel: "Body" });
  const send = make("button", { type: "submit", textContent: "Send" });
  const stop = make("button", { type: "button", textContent: "Stop", className: "quiet", hidden: true });
  const line = make("p", { role: "status" });
  const command = make("pre", { hidden: true });
  const answer = make("pre", { hidden: true });
  const form = make("form", {}, ...inputs.map(({ one, input }) => make("label", {}, one.name, input)));
  const whole = make("div", {}, form, text, make("div", { className: "buttons" }), line, command, answer);
  whole.querySelector(".buttons").append(send, stop);
  form.id = `try-${call.operationId}`;
  send.setAttribute("form", form.id);
  let ending = null;
  stop.onclick = () => ending?.abort();
  form.onsubmit = async (event) => {
    event.preventDefault();
    const headers = { ...access() };
    const query = new URLSearchParams();
    let target = path;
    for (const { one, input } of inputs) {
      if (one.in === "path") target = target.replace(`{${one.name}}`, encodeURIComponent(input.value));
      else if (input.value !== "" && one.in === "query") query.set(one.name, input.value);
      else if (input.value !== "" && one.in === "header") headers[one.name] = input.value;
    }
    if (query.size) target += `?${query}`;
    if (text?.value.trim()) headers["Content-Type"] = "application/json";
    command.textContent = asCurl(method, target, headers, text?.value);
    command.hidden = false;
    answer.hidden = true;
    ending = new AbortController();
    [send.disabled, stop.hidden] = [true, false];
    line.textContent = "Waiting…";
    const began = performance.now();
    try {
      const response = await fetch(target, { method: method.toUpperCase(), headers, body: text?.value.trim() ? text.value : undefined, signal: ending.signal });
      line.replaceChildren(make("span", { className: "status", textContent: response.status, data: { kind: String(response.status)[0] } }),
        ` ${response.statusText} after ${Math.round(performance.now() - began)} ms`);
      await pour(response, answer);
    } catch (error) {
      line.append(error.name === "AbortError" ? " Stopped." : ` No answer: ${error.message}`);
    } finally {
      [send.disabled, stop.hidden] = [false, true];
    }
  };
  return whole;
}

async function pour(response, where) {
  const isJson = (response.headers.get("Content-Type") || "").includes("json");
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let told = "";
  for (;;) {
    const { done, value } = await reader.read();
    told += done ? decoder.decode() : decoder.decode(value, { stream: true });
    where.hidden = false;
    where.textContent = told.length > SHOWN_MAX ? `…${told.slice(-SHOWN_MAX)}` : told;
    if (done) break;
  }
  if (isJson && told.length <= SHOWN_MAX) try { where.textContent = pretty(JSON.parse(told)); } catch { /* NDJSON: as it is */ }
}

function asCurl(method, target, headers, body) {
  const quoted = (value) => `'${String(value).replaceAll("'", "'\\''")}'`;
  const words = ["curl"];
  if (method !== "get") words.push(`-X ${method.toUpperCase()}`);
  words.push(quoted(location.origin + target));
  for (const [name, value] of Object.entries(headers)) words.push(name === "Authorization" ? '-H "Authorization: Bearer $RUMOR_API_TOKEN"' : `-H ${quoted(`${name}: ${value}`)}`);
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
