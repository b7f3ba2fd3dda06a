/* What must be live: times, refreshing, filters as one types, what a form would mean. Every page works without it. */
"use strict";

const TICK = 1000;
const TYPING = 250;
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
let ahead = 0;

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

/* Fetches a part of a page and puts it in its place, unless nothing has changed or somebody is at work in it. */
const seen = new Map();

async function refresh(part, address, options = {}) {
  const place = document.getElementById(part);
  const sign = document.getElementById("alive");
  place.ariaBusy = "true";
  try {
    const answer = await fetch(address, {
      ...options, headers: {[PART]: part}, credentials: "same-origin", redirect: "manual", cache: "no-cache",
    });
    if (answer.type === "opaqueredirect" && !options.method) return location.reload();  // the session has ended
    if (!answer.ok) throw new Error(answer.statusText);
    const skew = Date.parse(answer.headers.get("Date")) - Date.now();
    ahead = Math.abs(skew) > 5 * TICK ? skew : 0;
    sign.textContent = "Live";
    return put(part, place, await answer.text(), options.insist);
  } catch {
    sign.hidden = false;
    sign.textContent = "Not reached, still trying";
    return undefined;
  } finally {
    place.ariaBusy = "false";
  }
}

function put(part, place, text, insist) {
  const busy = place.contains(document.activeElement) && document.activeElement !== document.body;
  if (seen.get(part) === text || (busy && !insist)) return;
  const ticked = [...place.querySelectorAll("input[type=checkbox]:checked")].map((box) => box.value);
  const opened = [...place.querySelectorAll("details")].map((each) => each.open);
  seen.set(part, text);
  place.innerHTML = text;
  place.querySelectorAll("input[type=checkbox]").forEach((box) => { box.checked = ticked.includes(box.value); });
  place.querySelectorAll("details").forEach((each, at) => { if (opened[at]) each.open = true; });
  tellAll();
}

function keepLive() {
  const place = document.querySelector("#live[data-every]");
  const every = place ? Number(place.dataset.every) * TICK : 0;
  if (!every) return;
  const sign = document.getElementById("alive");
  let waiting = false;
  sign.hidden = false;
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
  const mean = later(() => ask("outlook"), TYPING);
  form.addEventListener("input", (event) => {
    if (event.target.closest(".schedule")) mean();
    if ("arguments" in event.target.dataset) later(() => ask("arguments"), TYPING)();
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
    const question = event.target.dataset.ask;
    if (question && !confirm(question)) event.preventDefault();
  });
  document.addEventListener("change", (event) => {
    const name = event.target.dataset.all;
    if (!name) return;
    document.querySelectorAll(`input[name="${name}"]`).forEach((box) => { box.checked = event.target.checked; });
  });
});
