"use strict";
// Shows the status that the proxy sends each second, and asks for operations. Everything that comes from the proxy is set as text.

const at = id => document.getElementById(id);
const number = n => Number(n).toLocaleString("en");
const seconds = s => s == null ? "none yet" : s < 1 ? `${(s * 1000).toFixed(0)} ms` : `${s.toFixed(1)} s`;

/** An element with these properties (of ARIA and data as attributes) and children. */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value == null || value === false) continue;
    if (key.includes("-")) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter(child => child != null));
  return element;
}

// --- what there is to say ---

const STATIONS = [
  ["teeing", "Teeing", "new writes reach all stores"],
  ["backfilling", "Backfilling", "the sessions from before are copied"],
  ["synced", "Synced", "all stores were compared"],
  ["cutting_over", "Cutting over", "clients are held"],
  ["cut_over", "Cut over", "the new Redis answers"],
  ["finished", "Finished", "the old Redis is let go"],
];

const ACTIONS = [
  ["backfill", "Backfill", "copies the sessions that were there before",
    "Copies every session of the Redis that answers Django to the other stores. Django notices nothing: it gives way to other commands. It can be stopped, and goes on where it was."],
  ["verify", "Verify", "compares all stores, in both directions",
    "Reads every session in all stores and compares content and expiry. It changes nothing and can be stopped."],
  ["cutover", "Cut over", "the new Redis answers Django",
    "Clients are held for some milliseconds until the new Redis has everything; then it answers them. Where that takes too long it is undone. Writes go back to the old Redis from then on, so that a rollback loses nothing."],
  ["rollback", "Roll back", "the old Redis answers Django again",
    "Clients are held for some milliseconds, and then the old Redis answers them, with all that was written since the cutover."],
  ["finish", "Finish", "lets go of the old Redis",
    "Writes no longer go to the old Redis. There is no way back to it after this."],
  ["restore", "Restore", "puts back what the authority has lost",
    "Puts sessions back into the Redis that answers Django: those that it lacks and another store has. Nothing that is there is changed, and no logout is undone."],
];

// What was done about a difference, where it is good or bad news.
const NEWS = { no_copy_removes_it: "bad", differs_still: "bad", the_same_again: "good" };

// --- asking ---

// Kept for this tab alone.
let token = sessionStorage.getItem("token");

async function ask(method, path, body) {
  const headers = {};
  if (token) headers.authorization = "Bearer " + token;
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (answer.status === 401) throw new Unauthorized();
  return answer;
}

class Unauthorized extends Error {}

async function json(method, path, body) {
  const answer = await ask(method, path, body);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

/** Follows the events for as long as they come. EventSource cannot send a token. */
async function follow() {
  const answer = await ask("GET", "/api/v1/events");
  if (!answer.ok) throw new Error((await answer.json()).error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream has ended");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const kind = lines.find(line => line.startsWith("event: "))?.slice(7);
      const data = lines.filter(line => line.startsWith("data: ")).map(line => line.slice(6)).join("\n");
      if (kind === "status") show(JSON.parse(data));
    }
  }
}

async function live() {
  for (;;) {
    try {
      await follow();
    } catch (error) {
      if (error instanceof Unauthorized) {
        at("problem").textContent = token ? "This token is not accepted." : "";
        at("summary").textContent = "A token is needed";
        at("all").hidden = true;
        at("ask").hidden = false;
        at("token").focus();
        return;
      }
      at("problem").textContent = "The proxy does not answer: " + error.message;
      await new Promise(resolve => setTimeout(resolve, 1000));
    }
  }
}

at("ask").addEventListener("submit", event => {
  event.preventDefault();
  token = at("token").value;
  sessionStorage.setItem("token", token);
  at("token").value = "";
  at("ask").hidden = true;
  live();
});

// --- showing ---

let status;
// Who is connected is asked for this often, in seconds.
const ROLL_EVERY = 5;
let rollCalled = 0;
// Why the last request was refused, until the next one.
let complaint = "";

function show(now) {
  const ended = status?.operation && status.operation.operation !== now.operation?.operation;
  const first = !status;
  status = now;
  at("all").hidden = false;
  at("problem").textContent = [...now.warnings, complaint].filter(Boolean).join(" · ");
  const station = STATIONS.find(([phase]) => phase === now.phase);
  at("summary").textContent = `${station[1]}: the ${now.authority} Redis answers Django`;
  document.title = `${station[1]} · sessionferry`;
  showStations(now);
  showStores(now);
  showRunning(now.operation);
  showButtons(now);
  showCharts(now);
  showCounts(now);
  if (first || ended) complaining("log", showLog);
  if (first || now.uptime_seconds - rollCalled >= ROLL_EVERY) {
    rollCalled = now.uptime_seconds;
    // Where it fails the events fail too, and say so.
    showClients().catch(() => {});
  }
}

/** Puts the children in place; what is the same stays, so that nothing is read aloud again. */
function fill(id, children) {
  const parent = at(id);
  children.forEach((child, i) => {
    const old = parent.children[i];
    if (!old) parent.append(child);
    else if (!old.isEqualNode(child)) old.replaceWith(child);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

function showStations(now) {
  const here = STATIONS.findIndex(([phase]) => phase === now.phase);
  fill("stations", STATIONS.map(([, name, what], i) =>
    make("li", { className: i < here ? "past" : "", "aria-current": i === here ? "step" : null },
      make("div", {}, name), make("small", {}, what))));
}

function showStores(now) {
  const role = name => now.authority === name ? "answers Django" : now.phase === "finished" ? "let go" : "is written to as well";
  const card = (title, what, count, sink) => {
    const trouble = sink && !sink.absent && !sink.connected;
    return make("div", { className: "card" },
      make("h3", {}, title),
      make("p", { className: "soft" }, what),
      make("p", { className: "big" }, `${number(count)} sessions`),
      sink && !sink.absent ? make("p", {}, `${number(sink.pending)} on their way, ${seconds(sink.lag_seconds)} behind`) : null,
      trouble ? make("p", { className: "bad" }, "Not connected" + (sink.last_error ? ": " + sink.last_error : "")) : null,
      sink && !sink.absent && sink.connected ? make("p", { className: "good" }, "Connected") : null);
  };
  const { source, target, database } = now.sessions;
  const redis = name => now.authority === name ? null : now.tee.target;
  fill("stores", [
    card("Source: the old Redis", role("source"), source, redis("source")),
    card("Target: the new Redis", role("target"), target, redis("target")),
    card("Database", now.tee.database.absent ? "none is written" : "rows of django_session", database, now.tee.database),
  ]);
}

function showRunning(operation) {
  at("running").hidden = !operation;
  if (!operation) return;
  const of = operation.total ? ` of ${number(operation.total)}` : "";
  at("running-text").textContent = `${operation.kind}: ${operation.message}, ${number(operation.done)}${of}`;
  if (operation.total) {
    at("bar").max = operation.total;
    at("bar").value = Math.min(operation.done, operation.total);
  } else {
    at("bar").removeAttribute("value");
  }
  at("stop").hidden = !["backfill", "verify", "restore"].includes(operation.kind);
}

at("stop").addEventListener("click", () => {
  const operation = status.operation;
  if (operation) complaining("stop", () => json("DELETE", `/api/v1/operations/${operation.operation}`));
});

function showButtons(now) {
  const list = at("buttons");
  if (!list.children.length) {
    list.append(...ACTIONS.map(([kind, name]) => {
      const button = make("button", { type: "button", id: kind, "aria-describedby": `${kind}-about` }, name);
      button.addEventListener("click", () => confirm(kind));
      return make("li", {}, button, make("span", { id: `${kind}-about` }));
    }));
  }
  for (const [kind, , what] of ACTIONS) {
    const refused = now.refused[kind];
    at(kind).disabled = Boolean(refused);
    at(kind).className = kind === next(now) && !refused ? "go" : "";
    at(`${kind}-about`).textContent = refused ? `${what} (not now: ${refused})` : what;
  }
}

/** What the move is waiting for. */
function next(now) {
  switch (now.phase) {
    case "teeing": return "backfill";
    case "backfilling": return now.backfill.state !== "done" || uncopied(now.verify) ? "backfill" : "verify";
    case "synced": return "cutover";
    case "cut_over": return "finish";
    default: return null;
  }
}

/** Whether some difference waits for a backfill. */
function uncopied(verify) {
  return verify.differences.some(({ outcome }) => outcome === "nothing_yet" || outcome === "differs_still");
}

const SAMPLES = 300;
const charts = [
  { name: "Commands a second", values: [], text: value => number(Math.round(value)) },
  { name: "Furthest behind", values: [], text: seconds },
  { name: "Last hold", values: [], text: seconds },
];
let before;

function showCharts(now) {
  const time = now.uptime_seconds;
  const rate = before && time > before.time ? (now.commands.forwarded - before.forwarded) / (time - before.time) : 0;
  before = { time, forwarded: now.commands.forwarded };
  const behind = Math.max(now.tee.target.lag_seconds, now.tee.database.lag_seconds);
  [Math.max(0, rate), behind, now.cutover.hold_seconds].forEach((value, i) => {
    charts[i].values.push(value);
    if (charts[i].values.length > SAMPLES) charts[i].values.shift();
  });
  fill("charts", charts.map(chart => {
    const last = chart.values.at(-1);
    const most = Math.max(...chart.values.map(Number), 1e-9);
    const points = chart.values.map((value, i) => `${i},${(50 - 48 * Number(value) / most).toFixed(1)}`);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${SAMPLES} 52`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${chart.name}: ${chart.text(last)}, at most ${chart.text(most > 1e-9 ? most : 0)}`);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    line.setAttribute("points", points.join(" "));
    svg.append(line);
    return make("div", { className: "card" },
      make("h3", {}, chart.name), make("p", { className: "big" }, chart.text(last)), svg);
  }));
}

function showCounts(now) {
  const { backfill, verify, clients, sessions, commands } = now;
  const differences = ["missing_target", "different_target", "extra_target", "missing_database", "different_database", "extra_database"]
    .reduce((sum, kind) => sum + verify[kind], 0);
  const rows = [
    ["Backfill", `${backfill.state}: ${number(backfill.copied)} copied, ${number(backfill.skipped)} skipped, ${number(backfill.failed)} failed`],
    ["Verify", `${verify.state}: ${number(verify.compared)} compared, ${number(differences)} differences`],
    ["No row can carry", `${number(sessions.unstorable)} sessions`],
    ["Past the proxy", sessions.bypass_watch === "off" ? "not watched" : `${number(sessions.bypassing_writes)} writes`],
    ["Put back, answered elsewhere", `${number(sessions.restored)}, ${number(sessions.rescued_reads)}`],
    ["Clients", `${number(clients.connected)} connected, ${number(clients.held)} held`],
    ["Commands", `${number(commands.forwarded)} forwarded, ${number(commands.session_writes)} of them changed a session`],
  ];
  fill("counts", rows.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  at("differences").hidden = !verify.differences.length;
  fill("difference-rows", verify.differences.map(({ session, found, outcome }) => make("tr", {},
    make("th", { scope: "row" }, make("code", {}, session)), make("td", {}, found.join(", ")),
    make("td", { className: NEWS[outcome] ?? "" }, outcome.replaceAll("_", " ")))));
}

async function showClients() {
  const { clients, left_out } = await json("GET", "/api/v1/clients");
  const rows = clients.map(({ address, name, library, connections }) => make("tr", {},
    make("th", { scope: "row" }, address), make("td", {}, library ?? ""), make("td", {}, name ?? ""),
    make("td", { className: "number" }, number(connections))));
  at("client-rest").textContent = left_out ? `and ${number(left_out)} smaller groups`
    : clients.length ? "" : "Nobody is connected.";
  at("clients").hidden = !clients.length;
  fill("client-rows", rows);
}

async function showLog() {
  const { operations } = await json("GET", "/api/v1/operations");
  fill("log", operations.map(operation => {
    const time = new Date(operation.finished ?? operation.started);
    const text = operation.error ? `${operation.state}: ${operation.error}` : operation.state;
    return make("li", { className: operation.state === "failed" ? "bad" : "" },
      make("time", { dateTime: time.toISOString() }, time.toLocaleTimeString()), ` ${operation.kind} ${text}`);
  }));
}

// --- confirming ---

async function confirm(kind) {
  const [, name, , text] = ACTIONS.find(([action]) => action === kind);
  at("confirm-title").textContent = `${name}?`;
  at("confirm-text").textContent = text;
  at("yes").textContent = name;
  at("yes").disabled = false;
  at("yes").onclick = () => {
    at("confirm").close();
    go(kind);
  };
  fill("confirm-checks", []);
  at("confirm").showModal();
  at("no").focus();
  if (kind === "cutover" || kind === "rollback") {
    at("yes").disabled = true;
    await showPlan(kind);
  }
}

/** Asks every question that the switch itself asks, and changes nothing. */
async function showPlan(kind) {
  try {
    const { operation: id } = await json("POST", `/api/v1/${kind}`, { dry_run: true });
    let operation;
    do {
      await new Promise(resolve => setTimeout(resolve, 100));
      operation = await json("GET", `/api/v1/operations/${id}`);
    } while (operation.state === "running");
    const checks = operation.result?.checks ?? [];
    fill("confirm-checks", checks.map(check =>
      make("li", { className: check.passed ? "good" : "bad" }, `${check.passed ? "Yes" : "No"}: ${check.name} (${check.detail})`)));
    at("yes").disabled = operation.state !== "done" || !checks.every(check => check.passed);
  } catch (error) {
    fill("confirm-checks", [make("li", { className: "bad" }, error.message)]);
  }
}

at("no").addEventListener("click", () => at("confirm").close());

async function go(kind) {
  await complaining(kind, () => json("POST", `/api/v1/${kind}`));
}

/** Says what became of a request that was refused. */
async function complaining(what, request) {
  complaint = "";
  try {
    await request();
  } catch (error) {
    complaint = `${what}: ${error.message}`;
    at("problem").textContent = complaint;
  }
}

live();
