"use strict";
// Renders /openapi.json: every operation with its parameters, schemas and answers, and a form to try it.
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

const resolved = (schema, document_, depth = 0) => {
  if (!schema || depth > 6) return {};
  if (schema.$ref) {
    return resolved(document_.components.schemas[schema.$ref.split("/").pop()], document_, depth + 1);
  }
  return schema;
};

const sample = (schema, document_, depth = 0) => {
  const known = resolved(schema, document_);
  if (depth > 6) return "…";
  if (known.examples) return known.examples[0];
  if (known.const !== undefined) return known.const;
  if (known.enum) return known.enum.join(" | ");
  const options = known.anyOf || known.oneOf;
  if (options) return sample(options[0], document_, depth + 1);
  if (known.type === "array") return [sample(known.items, document_, depth + 1)];
  if (known.properties) {
    return Object.fromEntries(
      Object.entries(known.properties).map(([name, value]) => [name, sample(value, document_, depth + 1)]),
    );
  }
  return known.default !== undefined && known.default !== null ? known.default : known.type || {};
};

const shown = (schema, document_) =>
  element("pre", { textContent: JSON.stringify(sample(schema, document_), null, 2) });

const table = (rows) =>
  element("table", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell)))));

const form = (method, path, operation, document_) => {
  const fields = new Map();
  const rows = (operation.parameters || []).map((parameter) => {
    const input = element("input", { placeholder: parameter.in + (parameter.required ? ", required" : "") });
    fields.set(parameter, input);
    return [element("code", { textContent: parameter.name }), parameter.description || "", input];
  });
  const parts = rows.length ? [element("h4", { textContent: "Parameters" }), table(rows)] : [];
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  const body = element("textarea", { rows: 3, placeholder: "{}" });
  if (content) {
    parts.push(element("h4", { textContent: "Body" }), shown(content.schema, document_), body);
  }
  const answer = element("pre", { hidden: true });
  const send = element("button", { textContent: "Send" });
  send.addEventListener("click", async () => {
    const query = new URLSearchParams();
    let address = path;
    for (const [parameter, input] of fields) {
      if (parameter.in === "path") address = address.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value) query.set(parameter.name, input.value);
    }
    const headers = { Authorization: `Bearer ${document.getElementById("token").value}` };
    const options = { method: method.toUpperCase(), headers, redirect: "manual" };
    if (content && body.value.trim()) {
      headers["Content-Type"] = "application/json";
      options.body = body.value;
    }
    answer.hidden = false;
    try {
      const response = await fetch(address + (query.size ? `?${query}` : ""), options);
      const text = await response.text();
      let pretty = text;
      try { pretty = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: shown as it came */ }
      answer.textContent = `${response.status} ${response.statusText}\n${pretty}`;
    } catch (error) {
      answer.textContent = String(error);
    }
  });
  return [...parts, send, answer];
};

const operationView = (method, path, operation, document_) => {
  const view = element("details", { id: operation.operationId },
    element("summary", {}, element("b", { textContent: method.toUpperCase() }),
      element("code", { textContent: path }), ` ${operation.summary || ""}`),
    element("p", { textContent: operation.description || "" }), ...form(method, path, operation, document_),
    element("h4", { textContent: "Answers" }));
  for (const [status, response] of Object.entries(operation.responses)) {
    const kinds = Object.values(response.content || {});
    view.append(element("p", {}, element("b", { textContent: status }), ` ${response.description}`));
    if (status < 300 && kinds[0] && kinds[0].schema) view.append(shown(kinds[0].schema, document_));
  }
  return view;
};

fetch("/openapi.json").then((response) => response.json()).then((document_) => {
  document.getElementById("about").append(
    ...document_.info.description.split("\n\n").map((text) => element("p", { textContent: text })));
  const groups = new Map();
  for (const [path, operations] of Object.entries(document_.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = (operation.tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operationView(method, path, operation, document_));
    }
  }
  document.getElementById("operations").replaceChildren(...[...groups].flatMap(
    ([tag, views]) => [element("h2", { textContent: tag }), ...views]));
}).catch((error) => { document.getElementById("operations").textContent = String(error); });
