// What a document of /api/v1/state looks like: elements in, nothing remembered. No HTML is ever parsed,
// so that no model name can be more than text.

import { DASH, clock, count, figure, gib, multiple, percent, room, span } from "./format.js";

export const STATES = {
  ok: { icon: "✓", word: "ok" },
  low: { icon: "!", word: "low" },
  exhausted: { icon: "✕", word: "exhausted" },
  unknown: { icon: "?", word: "unknown" },
};

export const CEILINGS = {
  slots: { name: "slots", long: "slots (max_num_seqs)", dash: [2, 3] },
  kv_cache: { name: "KV cache", long: "KV cache", dash: [9, 4] },
  latency: { name: "latency", long: "planned time per token", dash: [9, 3, 2, 3] },
  prefill: { name: "prefill", long: "computing prompts", dash: [5, 5] },
  plan: { name: "plan", long: "planned concurrency", dash: [16, 4] },
};

const DIMENSIONS = {
  concurrency: "peak sequences, 5 min",
  request_rate: "requests per second",
  prompt_p50: "prompt tokens, median",
  prompt_p95: "prompt tokens, p95",
  output_p50: "answer tokens, median",
  output_p95: "answer tokens, p95",
  ttft_p95: "time to first token, p95",
  tpot_p95: "time per token, p95",
  kv_tokens: "KV pool, tokens",
};

const FITS = {
  within: { icon: "✓", word: "as planned" },
  over: { icon: "▲", word: "outgrown" },
  unclear: { icon: "≈", word: "unclear" },
  unknown: { icon: "?", word: "not known" },
};

export const $ = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Writes only what changed: a screen reader that is reading, or a selection, is left alone.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// What each parent was last filled with: an unchanged part keeps its selection, focus and scroll.
const drawn = new WeakMap();

function fill(parent, ...children) {
  const shadow = h("div", {}, ...children);
  const text = shadow.innerHTML;
  if (drawn.get(parent) !== text) {
    drawn.set(parent, text);
    const held = parent.contains(document.activeElement) ? document.activeElement : null;
    const focus = held ? held.dataset.key ?? null : null;
    parent.replaceChildren(...shadow.childNodes);
    if (focus !== null) parent.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
  }
}

function runbook(url) {
  const alert = url.slice(url.lastIndexOf("/") + 1).replace(/\.md$/, "");
  return h("a", { href: url, rel: "noreferrer", "data-key": url }, "runbook", h("span", { class: "unseen" }, ` of ${alert}`));
}

function sentenceWithLink(text, url) {
  return url === null ? [text] : [text, " ", runbook(url)];
}

// --- entries: ranks, and engines that have none ---

export const keyOf = (entry) => JSON.stringify([entry.engine, entry.rank, entry.model_name]);

export function entries(doc) {
  const bare = doc.engines
    .filter((engine) => !doc.ranks.some((rank) => rank.engine === engine.name))
    .map((engine) => ({
      engine: engine.name,
      rank: null,
      model_name: null,
      seen: false,
      state: "unknown",
      verdict: engine.verdict ?? { sentence: "The engine has shown no model yet.", advice: null, runbook: null, notes: [] },
    }));
  // What cannot be seen stands right behind what is exhausted, as in the document.
  const worst = doc.ranks.filter((rank) => rank.state === "exhausted");
  return [...worst, ...bare, ...doc.ranks.filter((rank) => rank.state !== "exhausted")];
}

function title(entry) {
  if (entry.rank === null) return entry.engine;
  return `${entry.model_name || "model without a name"}, rank ${entry.rank}, on ${entry.engine}`;
}

export function list(all, chosen, choose) {
  $("ranks").hidden = all.length < 2;
  document.body.classList.toggle("many", all.length > 1);
  fill(
    $("rank-list"),
    ...all.map((entry) => {
      const key = keyOf(entry);
      const state = STATES[entry.state];
      return h(
        "li",
        {},
        h(
          "button",
          { type: "button", "data-key": key, class: `entry ${entry.state}`, "aria-current": key === chosen ? "true" : null },
          h("span", { class: "icon", "aria-hidden": "true" }, state.icon),
          h("span", { class: "name" }, entry.rank === null ? entry.engine : `${entry.engine} · rank ${entry.rank}`),
          h("span", { class: "more" }, entry.seen ? `${room(entry.headroom.sequences)} fit` : "no data"),
          h("span", { class: "model" }, entry.model_name ?? ""),
          h("span", { class: "word" }, state.word),
        ),
      );
    }),
  );
  for (const button of $("rank-list").querySelectorAll("button")) {
    button.onclick = () => choose(button.dataset.key);
  }
}

// --- the expanded one ---

export function verdict(entry) {
  const state = STATES[entry.state];
  $("chart-card").hidden = entry.rank === null;
  $("verdict-card").className = `card verdict ${entry.state}`;
  say($("state-icon"), state.icon);
  say($("state-word"), state.word);
  say($("who"), title(entry));
  say($("sentence"), entry.verdict.sentence);
  fill($("advice"), ...sentenceWithLink(entry.verdict.advice ?? "", entry.verdict.runbook));
  fill(
    $("notes"),
    ...entry.verdict.notes.map((note) => h("li", {}, ...sentenceWithLink(note.text, note.runbook))),
  );
}

function tile(name, value, more, bar = null) {
  return h(
    "div",
    { class: "tile" },
    h("dt", {}, name),
    h("dd", { class: "value" }, value, value === DASH ? h("span", { class: "unseen" }, " unknown") : null),
    bar === null ? null : h("dd", { class: "meter", "aria-hidden": "true" }, h("span", { "data-share": bar })),
    h("dd", { class: "sub" }, more),
  );
}

// While requests wait it is what they are seen to wait for; else it is the least of the estimates.
function bindsWord(entry) {
  return entry.reason === "waiting" || entry.reason === "preempting" ? "Binds now" : "Binds first";
}

function roomText(entry) {
  const { sequences, ratio } = entry.headroom;
  if (entry.sustainable === null) return "no ceiling is known";
  if (sequences === null) return "demand is not known";
  const limit = `${figure(entry.sustainable)} sustainable`;
  return sequences < 0 ? `too many; ${limit}` : `more fit; ${limit}, ${percent(ratio)} free`;
}

export function tiles(entry) {
  $("tiles-box").hidden = !entry.seen;
  if (!entry.seen) {
    fill($("tiles"));
    return;
  }
  const { headroom, kv_cache: kv, plan, peaks } = entry;
  const base = entry.spike_multiple === null ? "not known now" : "recent demand";
  const spike = plan === null ? `${base}; no plan to compare` : `${base}; the plan wants ${figure(plan.spike_factor)}×`;
  const deferred = entry.deferred ? ` (${count(entry.deferred)} more deferred)` : "";
  fill(
    $("tiles"),
    tile("Demand", count(entry.demand), `${count(entry.running)} running + ${count(entry.waiting)} waiting${deferred}; peak ${count(peaks.demand["5m"])} in 5 min`),
    tile("Room", room(headroom.sequences), roomText(entry)),
    tile(bindsWord(entry), entry.binding === null ? DASH : CEILINGS[entry.binding].name, entry.binding === null ? "what stops the next sequence is not known" : "what stops the next sequence"),
    tile("Survives a spike of", multiple(entry.spike_multiple), spike),
    tile("KV cache", percent(kv.usage_ratio), kv.capacity_tokens === null ? "pool size unknown" : `${count(kv.used_tokens)} of ${count(kv.capacity_tokens)} tokens`, kv.usage_ratio),
  );
  for (const bar of $("tiles").querySelectorAll("[data-share]")) {
    bar.style.width = `${Math.min(100, bar.dataset.share * 100)}%`;
  }
}

export function ceilings(entry, swatch) {
  const body = $("ceilings").tBodies[0];
  $("ceilings-box").hidden = !entry.seen;
  if (!entry.seen) {
    fill(body);
    return;
  }
  const { demand, sustainable } = entry;
  const binds = bindsWord(entry);
  fill(
    body,
    ...Object.entries(CEILINGS).map(([key, ceiling]) => {
      const value = entry.capacities[key];
      const remark =
        value !== null && value === sustainable && key !== entry.binding ? "the least, by estimate" : key === "plan" ? (value === null ? "no plan" : "stops nobody; what the team sized for") : value === null ? unknownWhy(key) : "";
      return h(
        "tr",
        { class: key === entry.binding ? "binding" : null },
        h("td", {}, swatch(key)),
        h("th", { scope: "row" }, ceiling.long, key === entry.binding ? " " : null, key === entry.binding ? h("span", { class: "binds" }, binds.toLowerCase()) : null),
        h("td", { class: "num" }, value === null ? "unknown" : value < 10 ? figure(value) : count(Math.floor(value))),
        h("td", { class: "num" }, value === null || demand === null ? DASH : room(value - demand)),
        h("td", { class: "remark" }, remark),
      );
    }),
  );
}

function unknownWhy(key) {
  return {
    slots: "shown once all are in use, or by a plan",
    kv_cache: "shown once sequences run",
    latency: "needs a planned time per token, and batches large enough to tell",
    prefill: "shown once prompts slow the steps",
  }[key];
}

// --- the plan ---

function amount(value, unit) {
  if (value === null) return DASH;
  if (unit === "seconds") return span(value);
  return figure(value);
}

function observed(each) {
  if (each.observed !== null) return amount(each.observed, each.unit);
  return each.fit === "unknown" ? DASH : each.fit === "over" ? "more" : each.fit === "within" ? "less" : "about that";
}

export function plan(entry) {
  $("plan-card").hidden = entry.rank === null;
  if (!entry.plan) {
    fill(
      $("plan"),
      h("p", {}, "No plan is declared for this model. Declare what it was sized for under ", h("code", {}, "plans:"), " in the configuration, and each number stands here beside what is seen."),
    );
    return;
  }
  const rows = entry.plan.dimensions.map((each) => {
    const fit = FITS[each.fit];
    return h(
      "tr",
      { class: `fit-${each.fit}` },
      h("th", { scope: "row" }, DIMENSIONS[each.dimension]),
      h("td", { class: "num" }, amount(each.planned, each.unit)),
      h("td", { class: "num" }, observed(each)),
      h("td", {}, h("span", { class: "icon", "aria-hidden": "true" }, fit.icon), h("span", {}, fit.word)),
    );
  });
  const seconds = Math.max(0, ...entry.plan.dimensions.filter((each) => each.basis !== "peak").map((each) => each.seconds ?? 0));
  fill(
    $("plan"),
    rows.length === 0
      ? h("p", {}, entry.seen ? "The plan declares no limits." : "Nothing is seen of it now.")
      : h(
          "div",
          { class: "scroll" },
          h(
            "table",
            { class: "plan" },
            h("caption", {}, `Plan “${entry.plan.name}”; requests of the last ${seconds > 0 ? span(seconds) : "15 min"}, lengths estimated inside the engine's buckets`),
            h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "what"), h("th", { scope: "col", class: "num" }, "planned"), h("th", { scope: "col", class: "num" }, "seen"), h("th", { scope: "col" }, "so"))),
            h("tbody", {}, ...rows),
          ),
        ),
    exceedance(entry.prompts_over_plan),
  );
}

function between(lower, upper) {
  const low = percent(lower, 1);
  const high = percent(upper, 1);
  return low === high ? low : `${low} to ${high}`;
}

function exceedance(over) {
  if (over === null) return null;
  const limit = `${count(over.planned_p95_tokens)} tokens`;
  const ever =
    over.requests === null || !over.prompts
      ? ""
      : ` Since the engine started: ${between(over.requests.lower / over.prompts, over.requests.upper / over.prompts)} of ${count(over.prompts)}.`;
  const late =
    over.recent_ratio === null
      ? `How many prompts exceed the planned ${limit} is not known yet.`
      : `${between(over.recent_ratio.lower, over.recent_ratio.upper)} of the prompts were longer than the planned ${limit}; the plan allows 5 %.`;
  return h("p", { class: "hint" }, late + ever);
}

// --- batching ---

export function batching(entry) {
  $("batching-card").hidden = !entry.seen;
  const found = entry.batching ?? null;
  if (found === null || found.step_fixed_seconds === null || found.step_per_sequence_seconds === null) {
    fill($("batching"), h("p", {}, "Not known yet: it takes some minutes of traffic at different batch sizes to tell the fixed part of a step from what each sequence adds."));
    return;
  }
  const gain = found.marginal_gain_ratio;
  const fixed = (found.step_fixed_seconds * 1000).toFixed(1);
  const each = (found.step_per_sequence_seconds * 1000).toFixed(2);
  fill(
    $("batching"),
    gain === null
      ? h("p", {}, "No batch runs now.")
      : h("p", { class: "big" }, h("strong", {}, percent(gain)), " of a lone sequence's throughput is what one more adds now"),
    gain === null ? null : h("p", { class: "meter", "aria-hidden": "true" }, h("span", { "data-share": gain })),
    h("p", { class: "hint" }, `A step takes ${fixed} ms + ${each} ms for each sequence (estimate).`, found.knee_sequences === null ? "" : ` Beyond ${count(Math.round(found.knee_sequences))} at once, batching pays little more.`),
  );
  for (const bar of $("batching").querySelectorAll("[data-share]")) {
    bar.style.width = `${Math.max(0, Math.min(100, bar.dataset.share * 100))}%`;
  }
}

// --- GPUs ---

const OWNERS = [
  ["engine", "engine"],
  ["other", "others"],
  ["reserved", "driver"],
  ["free", "free"],
];

function gpu(device) {
  const memory = device.memory_bytes;
  const known = memory.engine !== null;
  const parts = (known ? OWNERS : [["used", "used"], ["free", "free"]]).filter(([key]) => memory[key] !== null && memory[key] > 0);
  const facts = [
    device.power_watts === null ? null : `${count(device.power_watts)} of ${count(device.power_limit_watts)} W`,
    device.temperature_celsius === null ? null : `${count(device.temperature_celsius)} °C`,
    device.utilization_ratio === null ? null : `busy ${percent(device.utilization_ratio)}`,
  ].filter((fact) => fact !== null);
  const throttled = (device.clock_events ?? []).filter((reason) => /slowdown|brake|cap/.test(reason));
  return h(
    "div",
    { class: "gpu" },
    h("h3", {}, `${device.index}: ${device.name ?? "GPU"}`),
    h("div", { class: "stack", "aria-hidden": "true" }, ...parts.map(([key]) => h("span", { class: `part ${key}`, "data-share": memory[key] / memory.total }))),
    h("ul", { class: "parts" }, ...parts.map(([key, name]) => h("li", {}, h("span", { class: `key ${key}`, "aria-hidden": "true" }), `${name} ${gib(memory[key])}`)), h("li", {}, `of ${gib(memory.total)}`)),
    h("p", { class: "hint" }, facts.join(", "), throttled.length ? `; clocks held back: ${throttled.join(", ").replaceAll("_", " ")}` : ""),
    known ? null : h("p", { class: "hint" }, "Whose memory it is cannot be told: the driver shows no processes here."),
  );
}

export function gpus(doc) {
  const { up, devices, lost } = doc.gpus;
  const remarks = [];
  if (up === null) remarks.push("GPUs are not read: switched off in the configuration.");
  else if (!up) remarks.push("No GPU can be read here: no driver, no permission, or it hangs. What the engine says is not affected.");
  else if (devices.length === 0) remarks.push("No GPU is visible here.");
  for (const index of lost) remarks.push(`GPU ${index} fell off the bus.`);
  fill($("gpus"), ...devices.map(gpu), ...remarks.map((text) => h("p", {}, text)));
  for (const part of $("gpus").querySelectorAll("[data-share]")) part.style.width = `${part.dataset.share * 100}%`;
}

// --- how we know ---

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

// Time that no poll covered; while the engine is away it grows.
function unobserved({ poll, verdict }) {
  const away = verdict === null ? 0 : poll.age_seconds ?? 0;
  const seconds = poll.unobserved_seconds + away;
  return seconds > 0 ? span(seconds) : "0 s";
}

export function poll(doc, entry) {
  const engine = doc.engines.find((each) => each.name === entry.engine);
  const { poll } = engine;
  const errors = Object.entries(poll.errors).map(([kind, times]) => `${count(times)} ${kind.replaceAll("_", " ")}`);
  fill(
    $("poll"),
    fact("engine", [engine.kind, engine.version].filter((text) => text !== null).join(" ") || "not recognised yet"),
    fact("last good poll", poll.last_success === null ? "never" : `${clock(poll.last_success)}, took ${span(poll.duration_seconds)}`),
    fact("how", { filtered: "only the moving series", full: "the whole page each time" }[poll.mode] ?? "still finding out"),
    fact("failed polls", errors.length ? errors.join(", ") : "none"),
    fact("not observed", unobserved(engine)),
    entry.reason ? fact("state, why", entry.reason.replaceAll("_", " ")) : null,
    doc.exporter.config_reload_successful ? null : fact("configuration", "the last reload failed; the old one stays. The log says why."),
  );
}
