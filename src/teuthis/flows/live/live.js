// The page shows numbers and the register's own words; both arrive as text and stay text.
"use strict";

const TICK = 250;
const CALM = 1200; // ms without news after which a line rests
const SHOWN = 14;
const $ = (id) => document.getElementById(id);
const lines = new Map([...document.querySelectorAll(".flow")].map((g) => [g.dataset.flow, g]));
const vms = new Map(); // VM → flow → [count, bytes, rejected, kind → rejected]
const rates = new Map(); // flow → items a second, smoothed
const quiet = new Map(); // flow → the timer that lets it rest
let register = {};
let chosen = null;
let limb = null;

for (const [id, group] of lines) {
  for (const path of group.querySelectorAll("path.body, path.arm")) {
    const pulse = document.createElementNS(path.namespaceURI, "path");
    pulse.setAttribute("d", path.getAttribute("d"));
    pulse.setAttribute("class", "pulse");
    path.after(pulse);
  }
  group.setAttribute("tabindex", "0");
  group.setAttribute("role", "button");
  group.addEventListener("click", () => choose(id));
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(id);
    }
  });
}
for (const heading of document.querySelectorAll(".limb > .heading")) {
  heading.addEventListener("click", () => chooseLimb(heading.parentNode));
}

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function number(value) {
  return Math.round(value).toLocaleString("en");
}

/** The sum of the chosen VMs' counters of one flow. */
function total(flow) {
  const sum = [0, 0, 0];
  for (const [name, counts] of vms) {
    const mine = ($("vm").value === "" || $("vm").value === name) && counts[flow];
    if (mine) sum.forEach((value, index) => (sum[index] = value + mine[index]));
  }
  return sum;
}

/** How often the chosen VMs' flow was refused, by kind of bad input. */
function kinds(flow) {
  const sum = {};
  for (const [name, counts] of vms) {
    const mine = ($("vm").value === "" || $("vm").value === name) && counts[flow];
    for (const [kind, value] of Object.entries((mine && mine[3]) || {})) {
      sum[kind] = (sum[kind] ?? 0) + value;
    }
  }
  return sum;
}

function totals() {
  return new Map([...lines.keys()].map((flow) => [flow, total(flow)]));
}

let before = totals();
let fresh = true; // what happened before we looked is no news

function take(news) {
  for (const [name, counts] of Object.entries(news)) {
    if (counts === null) {
      vms.delete(name);
    } else {
      vms.set(name, { ...vms.get(name), ...counts });
    }
  }
  offerVms();
  const now = totals();
  if (fresh) {
    fresh = false;
    before = now;
  }
  for (const [flow, [count, , rejected]] of now) {
    const [oldCount, , oldRejected] = before.get(flow);
    const more = Math.max(0, count - oldCount);
    const refused = Math.max(0, rejected - oldRejected);
    const rate = 0.6 * (rates.get(flow) ?? 0) + (0.4 * (more + refused) * 1000) / TICK;
    rates.set(flow, rate < 0.05 ? 0 : rate);
    if (more + refused > 0) move(flow, rate);
    if (refused > 0) flash(flow);
  }
  before = now;
  show();
}

function move(flow, rate) {
  const group = lines.get(flow);
  group.style.setProperty("--beat", `${Math.max(0.18, 1.6 - 0.22 * Math.log2(1 + rate))}s`);
  group.classList.add("moving");
  clearTimeout(quiet.get(flow));
  quiet.set(flow, setTimeout(() => group.classList.remove("moving"), CALM));
}

function flash(flow) {
  const group = lines.get(flow);
  group.classList.remove("refused");
  group.getBoundingClientRect(); // so that the animation starts again
  group.classList.add("refused");
  setTimeout(() => group.classList.remove("refused"), 1400);
}

function offerVms() {
  const menu = $("vm");
  const known = new Set([...menu.options].map((option) => option.value));
  for (const name of vms.keys()) if (!known.has(name)) menu.add(new Option(name, name));
  for (const option of [...menu.options]) {
    if (option.value && !vms.has(option.value) && !option.selected) option.remove();
  }
}

function show() {
  let [rate, bytes, refused] = [0, 0, 0];
  for (const [flow, [, size, rejected]] of before) {
    rate += rates.get(flow) ?? 0;
    bytes += size;
    refused += rejected;
  }
  $("rate").textContent = number(rate);
  $("bytes").textContent = number(bytes);
  $("refused").textContent = number(refused);
  $("refused").className = refused ? "bad" : "";
  const named = vms.size === 1 ? "1 VM" : `${vms.size} VMs`;
  $("state").textContent = vms.size ? named : "no VM is running";
  showList();
  if (!chosen) return;
  $("now").textContent = sentence(before.get(chosen));
  const refusedFor = kinds(chosen);
  for (const item of document.querySelectorAll("#detail [data-kind]")) {
    const times = refusedFor[item.dataset.kind] ?? 0;
    item.firstChild.textContent = times ? `${number(times)} × ` : "";
    item.className = times ? "bad" : "";
  }
}

function sentence([count, bytes, rejected]) {
  return `${number(count)} times, ${number(bytes)} bytes, ${number(rejected)} refused`;
}

function showList() {
  const flows = limb
    ? [...limb.querySelectorAll(".flow")].map((group) => group.dataset.flow)
    : [...before.keys()]
        .filter((flow) => before.get(flow)[0] + before.get(flow)[2] > 0)
        .sort((a, b) => rates.get(b) - rates.get(a) || before.get(b)[0] - before.get(a)[0])
        .slice(0, SHOWN);
  const body = document.querySelector("#list tbody");
  while (body.rows.length > flows.length) body.deleteRow(-1);
  flows.forEach((flow, index) => {
    const row = body.rows[index] ?? newRow(body);
    const [count, , rejected] = before.get(flow);
    const button = row.cells[0].firstChild;
    if (button.textContent !== flow) button.textContent = flow;
    row.cells[1].textContent = number(rates.get(flow) ?? 0);
    row.cells[2].textContent = number(count);
    row.cells[3].textContent = number(rejected);
    row.cells[3].className = rejected ? "bad" : "";
  });
}

function newRow(body) {
  const row = body.insertRow();
  const button = make("button");
  button.addEventListener("click", () => choose(button.textContent));
  row.insertCell().append(button);
  for (let cell = 1; cell < 4; cell++) row.insertCell();
  return row;
}

function chooseLimb(group) {
  limb = limb === group ? null : group;
  $("list-name").textContent = limb ? `${limb.dataset.kind}, ${limb.dataset.process}` : "busiest";
  showList();
}

function choose(flow) {
  if (chosen) lines.get(chosen).classList.remove("chosen");
  chosen = chosen === flow ? null : flow;
  document.querySelector("main").classList.toggle("far", chosen !== null);
  $("detail").hidden = chosen === null;
  if (chosen === null) return;
  lines.get(chosen).classList.add("chosen");
  const entry = register[chosen];
  const close = make("button", "close", "close");
  close.addEventListener("click", () => choose(flow));
  const list = make("dl");
  const say = (name, value, id) => {
    const words = (Array.isArray(value) ? value : [value]).filter((each) => each !== "" && each != null);
    if (!words.length) return;
    list.append(make("dt", name));
    words.forEach((each) => {
      const item = make("dd", String(each));
      if (id) item.id = id;
      list.append(item);
    });
  };
  say("so far", sentence(before.get(flow)), "now");
  if (entry) {
    say("carries", entry.shape);
    say("way", `${entry.direction}, ${entry.kind}`);
    const limits = Object.entries(entry.values).filter(([key]) => key.endsWith("_max"));
    say("limits", [
      `${number(entry.min_bytes)} to ${number(entry.max_bytes)} bytes`,
      ...limits.map(([key, value]) => `${key}: ${number(value)}`),
    ]);
    const answers = Object.entries(entry.rejects);
    if (answers.length) list.append(make("dt", "refused"));
    for (const [kind, answer] of answers) {
      const item = make("dd");
      item.dataset.kind = kind;
      item.append(make("b"), make("i", kind), `: ${answer}`);
      list.append(item);
    }
    say("could go wrong", entry.threat);
    say("left", entry.left);
    say("falls", `${entry.receiver}: ${entry.reach}`);
    say("handler", entry.handler + (entry.lines ? `, ${entry.lines} lines` : ""));
    say("of its branches, fuzzing takes", entry.covered);
    say("its fuzz target has run", entry.fuzzed && `${entry.fuzzed} times`);
    say("kinds of bad input that tests raise", entry.refused);
    say("tests", entry.tests);
    say("random input", entry.fuzz);
  }
  $("detail").replaceChildren(close, make("h2", flow), list);
  show();
}

$("vm").addEventListener("change", () => {
  before = totals();
  rates.clear();
  show();
});

function listen() {
  const events = new EventSource("events");
  events.addEventListener("message", (event) => take(JSON.parse(event.data)));
  events.addEventListener("error", () => {
    vms.clear();
    before = totals();
    fresh = true;
    $("state").textContent = "the server has gone";
  });
}

fetch("flows.json")
  .then((answer) => answer.json())
  .then((entries) => (register = entries))
  .finally(listen);
