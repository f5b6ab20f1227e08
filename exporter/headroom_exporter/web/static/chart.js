// Demand against its ceilings: uPlot, fed with columns of /api/v1/history.
/* global uPlot */

import { CEILINGS } from "./view.js";
import { clock, figure, minute } from "./format.js";

const KEYS = Object.keys(CEILINGS);
const WINDOW = 900;
const LEAST_SPAN = 60;
const HOW = "Point at a moment to read its numbers.";
const LEVELS = ["running", "waiting", "sustainable", ...KEYS.map((key) => `capacity_${key}`)];

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// --- the rows of one rank ---

export function emptyRows() {
  return { time: [], state: [], ...Object.fromEntries(LEVELS.map((name) => [name, []])) };
}

export function extend(rows, columns) {
  const last = rows.time.at(-1) ?? -Infinity;
  const from = columns.time.findIndex((time) => time > last);
  if (from < 0) return;
  for (const name of Object.keys(rows)) for (const value of columns[name].slice(from)) rows[name].push(value);
  const old = rows.time.at(-1) - WINDOW;
  const gone = rows.time.findIndex((time) => time >= old);
  if (gone > 0) for (const name of Object.keys(rows)) rows[name].splice(0, gone);
}

function demandOf(rows) {
  return rows.running.map((running, i) => (running === null || rows.waiting[i] === null ? null : running + rows.waiting[i]));
}

// --- the same as a table ---

export function byMinute(rows) {
  const order = ["ok", "low", "unknown", "exhausted"];
  const minutes = new Map();
  const demand = demandOf(rows);
  rows.time.forEach((time, i) => {
    const name = minute(time);
    const row = minutes.get(name) ?? { name, sum: 0, count: 0, peak: null, sustainable: null, state: "ok" };
    if (demand[i] !== null) {
      row.sum += demand[i];
      row.count += 1;
      row.peak = Math.max(row.peak ?? 0, demand[i]);
    }
    const limit = rows.sustainable[i];
    if (limit !== null) row.sustainable = Math.min(row.sustainable ?? Infinity, limit);
    if (order.indexOf(rows.state[i]) > order.indexOf(row.state)) row.state = rows.state[i];
    minutes.set(name, row);
  });
  return [...minutes.values()].reverse();
}

// --- swatches of the legend ---

export function swatch(key) {
  const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  box.setAttribute("viewBox", "0 0 36 8");
  box.setAttribute("class", `swatch line-${key}`);
  box.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", "M0 4h36");
  line.setAttribute("stroke-dasharray", CEILINGS[key].dash.join(" "));
  box.append(line);
  return box;
}

// --- the chart ---

const stepped = () => uPlot.paths.stepped({ align: 1 });

function series() {
  const ceiling = (key) => ({
    label: CEILINGS[key].name,
    stroke: () => css(`--line-${key}`),
    width: 1.75,
    dash: CEILINGS[key].dash,
    paths: stepped(),
    points: { show: false },
  });
  return [
    {},
    {
      label: "sustainable",
      width: 0,
      fill: () => css("--beyond"),
      fillTo: (u) => u.scales.y.max,
      paths: stepped(),
      points: { show: false },
    },
    { label: "demand", stroke: () => css("--demand"), fill: () => css("--demand-fill"), width: 2, paths: stepped(), points: { show: false } },
    { label: "running", stroke: () => css("--running"), width: 1, paths: stepped(), points: { show: false } },
    ...KEYS.map(ceiling),
  ];
}

function axes() {
  const style = { stroke: () => css("--muted"), grid: { stroke: () => css("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return [
    { ...style, values: (u, ticks) => ticks.map((tick) => agoText(u, tick)), splits: agoSplits, size: 28 },
    { ...style, size: 44 },
  ];
}

// The axis counts back from the newest row: nobody at 3 a.m. wants to subtract clock times.
function agoSplits(u) {
  const { min, max } = u.scales.x;
  const step = [15, 30, 60, 120, 180, 300].find((seconds) => (max - min) / seconds <= Math.max(2, u.width / 90)) ?? 300;
  const ticks = [];
  for (let ago = 0; max - ago >= min; ago += step) ticks.unshift(max - ago);
  return ticks;
}

function agoText(u, tick) {
  const ago = Math.round(u.scales.x.max - tick);
  if (ago === 0) return "now";
  return ago % 60 === 0 ? `−${ago / 60} min` : ago < 60 ? `−${ago} s` : `−${Math.floor(ago / 60)}:${String(ago % 60).padStart(2, "0")}`;
}

// Names right of each ceiling's end, moved apart where they would cover each other; the table below has
// them all, so a narrow screen does without.
function nameCeilings(u) {
  const { ctx, bbox } = u;
  if (u.width < 600) return;
  const scale = devicePixelRatio;
  const last = u.data[0].length - 1;
  const labels = [];
  for (let i = 4; i < u.series.length; i += 1) {
    const value = u.data[i][last];
    if (value === null || value === undefined || value > u.scales.y.max) continue;
    labels.push({ i, text: `${u.series[i].label} ${figure(value)}`, y: u.valToPos(value, "y", true) + 4 * scale });
  }
  labels.sort((a, b) => b.y - a.y);
  let free = Infinity;
  ctx.save();
  ctx.font = `600 ${12 * scale}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  for (const label of labels) {
    const y = Math.max(Math.min(label.y, free), bbox.top + 11 * scale);
    free = y - 14 * scale;
    ctx.fillStyle = css(`--line-${KEYS[label.i - 4]}`);
    ctx.fillText(label.text, bbox.left + bbox.width + 6 * scale, y);
  }
  ctx.restore();
}

// A gap wide enough for words says that it is one.
function nameGaps(u) {
  const { ctx, bbox } = u;
  const scale = devicePixelRatio;
  const [times, , demand] = u.data;
  ctx.save();
  ctx.font = `${12 * scale}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  ctx.fillStyle = css("--muted");
  for (let i = 0; i < demand.length; i += 1) {
    if (demand[i] !== null) continue;
    const first = Math.max(0, i - 1);
    while (i < demand.length && demand[i] === null) i += 1;
    const from = Math.max(u.valToPos(times[first], "x", true), bbox.left);
    const to = u.valToPos(times[Math.min(i, times.length - 1)], "x", true);
    if (to - from > 60 * scale) ctx.fillText("no data", (from + to) / 2, bbox.top + bbox.height / 2);
  }
  ctx.restore();
}

// High enough for demand and for what binds; ceilings far above would only press the rest flat.
function top(rows, demand) {
  let most = 4;
  for (const column of [rows.sustainable, demand, rows.capacity_plan])
    for (const value of column) if (value !== null && value > most) most = value;
  return most * 1.18;
}

// What lies above the picture is left out of it: only upright strokes would remain of it.
function below(column, limit) {
  return column.map((value) => (value !== null && value > limit ? null : value));
}

export class Chart {
  constructor(box, readout) {
    this.box = box;
    this.readout = readout;
    this.plot = null;
    this.rows = null;
    this.top = 1;
    new ResizeObserver(() => this.resize()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.plot?.redraw());
  }

  wide() {
    return this.box.clientWidth >= 600;
  }

  size() {
    return { width: Math.max(200, this.box.clientWidth), height: this.box.clientWidth < 500 ? 220 : 300 };
  }

  resize() {
    if (this.plot === null) return;
    // The margin for the names comes and goes with the width: another plot, not another size.
    const { data } = this.plot;
    if (this.plot.width < 600 === this.wide()) {
      this.plot.destroy();
      this.make(data);
    } else this.plot.setSize(this.size());
  }

  make(data) {
    const options = {
      ...this.size(),
      padding: [8, this.wide() ? 104 : 24, 0, 0],
      legend: { show: false },
      cursor: { drag: { setScale: false, x: false, y: false }, points: { show: false }, y: false },
      scales: {
        x: { time: false, range: (u, min, max) => [Math.min(Math.max(min, max - WINDOW), max - LEAST_SPAN), max] },
        y: { range: () => [0, this.top] },
      },
      axes: axes(),
      series: series(),
      hooks: { draw: [nameCeilings, nameGaps], setCursor: [(u) => this.read(u)] },
    };
    this.plot = new uPlot(options, data, this.box);
  }

  draw(rows) {
    if (rows.time.length < 2) {
      this.box.classList.add("empty");
      this.box.setAttribute("aria-label", "Nothing was seen yet.");
      this.plot?.destroy();
      this.plot = null;
      this.readout.textContent = "";
      return;
    }
    this.box.classList.remove("empty");
    const demand = demandOf(rows);
    this.top = top(rows, demand);
    this.rows = [rows.time, rows.sustainable, demand, rows.running, ...KEYS.map((key) => rows[`capacity_${key}`])];
    const data = this.rows.map((column, i) => (i < 4 ? column : below(column, this.top)));
    if (this.plot) this.plot.setData(data);
    else this.make(data);
    this.describe(data);
    this.read(this.plot);
  }

  describe(data) {
    const seen = data[2].filter((value) => value !== null);
    const now = data[1].at(-1);
    const text =
      seen.length === 0
        ? "Line chart: demand was not known in the time shown."
        : `Line chart: demand lay between ${figure(Math.min(...seen))} and ${figure(Math.max(...seen))} sequences; sustainable now: ${now === null ? "unknown" : figure(now)}. The table below has a row a minute.`;
    this.box.setAttribute("aria-label", text);
  }

  read(u) {
    const i = u.cursor.idx;
    if (i == null) {
      this.readout.textContent = HOW;
      return;
    }
    const parts = [];
    for (let s = 1; s < u.series.length; s += 1) {
      const value = this.rows[s][i];
      parts.push(`${u.series[s].label} ${value === null ? "unknown" : figure(value)}`);
    }
    this.readout.textContent = `${clock(this.rows[0][i])}: ${parts.join(", ")}`;
  }
}
