// Asks /api/v1/state once a second and draws what it says. One rank is expanded; its past comes from
// /api/v1/history, whole at first and then row by row.

import { Chart, byMinute, emptyRows, extend, swatch } from "./chart.js";
import { DASH, clock, figure, span } from "./format.js";
import { $, STATES, batching, ceilings, entries, gpus, h, keyOf, list, plan, poll, say, tiles, verdict } from "./view.js";

const PERIOD = 1000;
const PATIENCE = 5000;

const chart = new Chart($("chart"), $("readout"));
// What the reader chose, or the worst at first: the page must not jump from rank to rank by itself.
let wanted = null;
let picked = false;
let chosen = null;
let rows = emptyRows();
let rowsOf = null;
let instance = null;
let latest = null;
let heardAt = 0;
let announced = "";

// --- asking ---

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.json();
}

async function askHistory(entry) {
  const key = `${instance} ${keyOf(entry)}`;
  if (rowsOf !== key) {
    rows = emptyRows();
    rowsOf = key;
  }
  if (entry.rank === null) return;
  const query = new URLSearchParams({ engine: entry.engine, rank: entry.rank, model_name: entry.model_name });
  if (rows.time.length) query.set("since", rows.time.at(-1));
  const answer = await ask(`api/v1/history?${query}`);
  if (rowsOf === key && answer.instance === instance) extend(rows, answer.columns);
}

async function tick() {
  const doc = await ask("api/v1/state");
  if (doc.version !== 1) throw new Error("another version of the exporter: reload this page");
  instance = doc.exporter.instance;
  const all = entries(doc);
  const kept = all.find((each) => keyOf(each) === wanted);
  const entry = kept ?? all[0];
  if (entry === undefined) throw new Error("no engine is configured");
  chosen = keyOf(entry);
  if (kept === undefined && !picked) wanted = chosen;
  await askHistory(entry);
  latest = doc;
  heardAt = Date.now();
  draw(doc, all, entry);
}

// --- drawing ---

function choose(key) {
  wanted = key;
  picked = true;
  soon();
}

function draw(doc, all, entry) {
  $("board").hidden = false;
  $("outage").hidden = true;
  document.body.classList.remove("offline");
  say($("version"), doc.exporter.version);
  $("simulated").hidden = !doc.exporter.simulated;
  list(all, chosen, choose);
  verdict(entry);
  tiles(entry);
  ceilings(entry, swatch);
  plan(entry);
  batching(entry);
  gpus(doc);
  poll(doc, entry);
  chart.draw(rows);
  say($("chart-span"), chartHint());
  if ($("minutes").open) drawMinutes();
  head(doc, entry);
  announce(all, entry);
}

function chartHint() {
  $("chart-key").hidden = $("minutes").hidden = rows.time.length < 2;
  if (rows.time.length < 2) return "Nothing was seen yet.";
  const seen = rows.time.at(-1) - rows.time[0];
  return `The last ${span(seen)}, each poll; where demand reaches the shaded field, requests queue.`;
}

function drawMinutes() {
  const found = byMinute(rows).map((row) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, row.name),
      h("td", { class: "num" }, row.count ? (row.sum / row.count).toFixed(1) : DASH),
      h("td", { class: "num" }, figure(row.peak)),
      h("td", { class: "num" }, figure(row.sustainable)),
      h("td", {}, row.state),
    ),
  );
  $("minutes").querySelector("tbody").replaceChildren(...found);
}

function head(doc, entry) {
  say($("link"), `live, ${clock(doc.time)}`);
  document.title = `${STATES[entry.state].icon} ${entry.state}: ${entry.engine}`;
}

// A screen reader hears a change of state, not every number that moves.
function announce(all, entry) {
  const key = `${chosen} ${entry.state} ${entry.binding ?? ""}`;
  if (key === announced) return;
  announced = key;
  say($("announcer"), `${STATES[entry.state].word}: ${entry.verdict.sentence}`);
}

// Old numbers must never look like new ones.
function lose(error) {
  const why = error.name === "TimeoutError" ? "no answer in time" : error.message;
  const since = latest === null ? "" : ` What you see is from ${clock(latest.time)}, ${span((Date.now() - heardAt) / 1000)} ago.`;
  say($("outage"), `The exporter does not answer (${why}).${since} Trying again.`);
  $("outage").hidden = false;
  document.body.classList.add("offline");
  say($("link"), "not connected");
  document.title = "? no answer: headroom-exporter";
}

// --- the rhythm ---

let timer = null;
let busy = false;

async function round() {
  clearTimeout(timer);
  if (busy) return;
  busy = true;
  try {
    await tick();
  } catch (error) {
    lose(error);
  } finally {
    busy = false;
    // A tab nobody looks at asks for nothing.
    timer = document.hidden ? null : setTimeout(round, PERIOD);
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(round, 0);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) soon();
});
$("minutes").addEventListener("toggle", drawMinutes);
round();
