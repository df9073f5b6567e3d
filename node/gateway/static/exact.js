"use strict";
// JSON as text, laid out and taken apart as it was written.
//
// JavaScript has one kind of number: a value that goes through JSON.parse and JSON.stringify comes out with other digits
// beyond 2^53, as 1.1 where 1.10 was written, and with its fields in another order. So what tasks hold stays text here.

const exact = (() => {
  const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

  // The text of JSON in lines, like JSON.stringify(value, null, 2).
  function laidOut(text) {
    const parts = [];
    let depth = 0;
    let before = "";
    const newLine = () => "\n" + "  ".repeat(depth);
    for (const [token] of text.matchAll(TOKEN)) {
      const isEmpty = before === "{" || before === "[";
      if (token === "}" || token === "]") {
        depth -= 1;
        if (!isEmpty) parts.push(newLine());
      } else if (isEmpty || before === ",") parts.push(newLine());
      parts.push(token[0] === '"' ? JSON.stringify(JSON.parse(token)) : token === ":" ? ": " : token);
      if (token === "{" || token === "[") depth += 1;
      before = token;
    }
    return parts.join("");
  }

  // The fields of an object in JSON: name -> text.
  function fieldsOf(text) {
    const fields = {};
    let depth = 0;
    let name = "";
    let last = "";
    let begin = 0;
    for (const { 0: token, index } of text.matchAll(TOKEN)) {
      if (depth === 1 && token === ":") {
        name = JSON.parse(last);
        begin = index + 1;
      } else if (depth === 1 && (token === "," || token === "}") && last !== "{") fields[name] = text.slice(begin, index).trim();
      if (token === "{" || token === "[") depth += 1;
      else if (token === "}" || token === "]") depth -= 1;
      last = token;
    }
    return fields;
  }

  // An object in JSON with one more field, whose value is JSON already.
  function withField(object, name, text) {
    const rest = JSON.stringify(object).slice(1, -1);
    return `{${rest}${rest && ","}${JSON.stringify(name)}:${text}}`;
  }

  return { laidOut, fieldsOf, withField };
})();
