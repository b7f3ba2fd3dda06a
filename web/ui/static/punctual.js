/* What must be live: times, refreshing, filters as one types, what a form would mean. Every page works without it. */
"use strict";

const TICK = 1000;
const TYPING = 250;
const RESTING = 500;  // for what takes a second to compute
const PART = "X-Part";
const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/* Light or dark: at once, before anything is drawn. */
const wanted = (document.cookie.match(/(?:^|; )theme=(\w+)/) || [])[1]
  || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
document.documentElement.dataset.bsTheme = wanted;

function span(seconds) {
  if (seconds < 1) return "now";
  const parts = [];
  let left = Math.floor(seconds);
  for (const [name, size] of UNITS) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count) parts.push(`${count} ${name}`);
  }
  return parts.slice(0, 2).join(" ");
}

const exact = new Intl.DateTimeFormat(undefined, {
  weekday: "short", year: "numeric", month: "2-digit", day: "2-digit",
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});

/* The page's clock: the server's, so that a wrong one here shows no wrong countdown. */
let ahead = skewed(Number(document.documentElement.dataset.now) - Date.now());

function skewed(by) {
  return Math.abs(by) > 5 * TICK ? by : 0;
}

function tell(element) {
  const at = Date.parse(element.dateTime);
  const seconds = (at - Date.now() - ahead) / TICK;
  const clock = exact.format(at);
  const away = span(Math.abs(seconds));
  const relative = away === "now" ? "now" : seconds > 0 ? `in ${away}` : `${away} ago`;
  const shown = {
    ago: relative,
    in: seconds > 0 ? relative : seconds > -10 ? "now" : `${away} overdue`,
    for: `for ${span(Math.max(0, -seconds))}`.replace("for now", "just begun"),
    clock,
    both: `${clock} · ${relative}`,
  }[element.dataset.as];
  if (element.textContent !== shown) element.textContent = shown;
  if (element.title !== clock) element.title = clock;
}

function tellAll() {
  if (document.hidden) return;
  document.querySelectorAll("time[datetime]").forEach(tell);
}

/* Fetches a part of a page and puts it in its place, unless nothing has changed, a later question was asked, or somebody
   is at work in it. */
const seen = new Map();
const asked = new Map();
const PATIENCE = 10 * TICK;

async function refresh(part, address, options = {}) {
  const place = document.getElementById(part);
  const number = (asked.get(part) || 0) + 1;
  asked.set(part, number);
  place.ariaBusy = "true";
  try {
    const answer = await fetch(address, {
      ...options, headers: {[PART]: part}, credentials: "same-origin", redirect: "manual", cache: "no-cache",
      signal: AbortSignal.timeout(PATIENCE),
    });
    const ended = answer.type === "opaqueredirect";
    if (ended && !options.method) return location.reload();
    if (ended) return say("Your session has ended: sign in in another tab");
    if (!answer.ok) throw new Error(answer.statusText);
    const text = await answer.text();
    if (asked.get(part) !== number) return undefined;
    ahead = skewed(Date.parse(answer.headers.get("Date")) - Date.now());
    return put(part, place, text, options.insist);
  } catch {
    return say("Not reached, still trying");
  } finally {
    if (asked.get(part) === number) place.ariaBusy = "false";
  }
}

function say(what) {
  const sign = document.getElementById("alive");
  sign.hidden = false;
  sign.textContent = what;
}

function put(part, place, text, insist) {
  const chosen = getSelection();
  const inside = (node) => node && node !== document.body && place.contains(node);
  const busy = inside(document.activeElement) || (!chosen.isCollapsed && inside(chosen.anchorNode));
  if (busy && !insist) return say("Held while you are in it");
  if (!insist) say("Live");
  if (seen.get(part) === text) return undefined;
  const ticked = [...place.querySelectorAll("input[type=checkbox]:checked")].map((box) => box.value);
  const opened = [...place.querySelectorAll("details")].map((each) => each.open);
  const scrolled = [...place.querySelectorAll("pre")].map((each) => each.scrollTop);
  place.querySelectorAll("input:not([type=checkbox]), select").forEach((each) => typed.set(each.name, each.value));
  const at = document.activeElement?.name;
  seen.set(part, text);
  place.innerHTML = text;
  place.querySelectorAll("input[type=checkbox]").forEach((box) => { box.checked = ticked.includes(box.value); });
  place.querySelectorAll("details").forEach((each, index) => { if (opened[index]) each.open = true; });
  place.querySelectorAll("pre").forEach((each, index) => { each.scrollTop = scrolled[index] || 0; });
  place.querySelectorAll("input:not([type=checkbox]), select").forEach((each) => {
    if (typed.get(each.name)) each.value = typed.get(each.name);
    if (busy && each.name === at) each.focus();
  });
  return tellAll();
}

/* What was typed into fields that went with a target's name, and come back with it. */
const typed = new Map();

function keepLive() {
  const place = document.querySelector("#live[data-every]");
  const every = place ? Number(place.dataset.every) * TICK : 0;
  if (!every) return;
  let waiting = false;
  say("Live");
  const look = async () => {
    if (document.hidden || waiting) return;
    waiting = true;
    await refresh("live", location.href);
    waiting = false;
  };
  setInterval(look, every);
  document.addEventListener("visibilitychange", look);
}

function later(step, wait) {
  let timer = 0;
  return (...given) => { clearTimeout(timer); timer = setTimeout(step, wait, ...given); };
}

/* Filters work as one types; the address follows, so that it can be kept and sent. */
function watchFilters() {
  document.querySelectorAll("form[data-part]").forEach((form) => {
    const find = () => {
      const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
      history.replaceState(null, "", `?${query}`);
      refresh(form.dataset.part, location.href, {insist: true});
    };
    form.addEventListener("input", later(find, TYPING));
    form.addEventListener("submit", (event) => { event.preventDefault(); find(); });
  });
}

/* What a form would mean, while one types; the fields for arguments follow the target. */
function watchDraft() {
  const form = document.querySelector("form[data-draft]");
  if (!form) return;
  const ask = (part) => refresh(part, location.href, {method: "POST", body: new FormData(form), insist: true});
  const weigh = later(() => ask("load"), RESTING);
  const mean = later(() => { ask("outlook"); weigh(); }, TYPING);
  const take = later(() => { ask("arguments"); weigh(); }, TYPING);
  weigh();
  form.addEventListener("input", (event) => {
    if ("arguments" in event.target.dataset) take();
    else if (!event.target.closest("#arguments")) mean();
  });
  form.addEventListener("click", (event) => {
    const put = event.target.closest("[data-put]");
    if (!put) return;
    const field = document.getElementById(put.dataset.put);
    field.value = put.dataset.value;
    field.focus();
    mean();
  });
  const zone = document.getElementById("timezone");
  const fresh = zone.value === "UTC" && location.pathname.endsWith("/new") && !location.search;
  if (fresh) {
    zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
    mean();
  }
}

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
  tellAll();
  setInterval(tellAll, TICK);
  keepLive();
  watchFilters();
  watchDraft();
  document.getElementById("theme")?.addEventListener("click", () => {
    const theme = document.documentElement.dataset.bsTheme === "dark" ? "light" : "dark";
    document.documentElement.dataset.bsTheme = theme;
    document.cookie = `theme=${theme}; path=/; max-age=31536000; samesite=lax`;
  });
  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.ask || event.target.dataset.ask;
    if (question && !confirm(question)) event.preventDefault();
    const back = event.target.elements.namedItem("back");
    if (back && event.target.id) back.value = location.pathname + location.search;  // filters may have changed it
  });
  document.addEventListener("change", (event) => {
    const name = event.target.dataset.all;
    if (!name) return;
    document.querySelectorAll(`input[name="${name}"]`).forEach((box) => { box.checked = event.target.checked; });
  });
});
