// Small helps; every page works without them.
"use strict";

// Keys in a list: j and k go down and up, Enter opens, x ticks, and a letter of [data-key] presses that button, or
// chooses, unfolds or goes to what has it.
document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input:not([type=checkbox], [type=radio]), select, textarea");
  if (field || event.ctrlKey || event.metaKey || event.altKey) return;
  const rows = [...document.querySelectorAll("[data-rows] > tr")];
  const at = rows.findIndex((row) => row.classList.contains("at"));
  if (event.key === "j" || event.key === "k") {
    const next = rows[Math.max(0, Math.min(rows.length - 1, at + (event.key === "j" ? 1 : at < 0 ? 1 : -1)))];
    if (!next) return;
    rows.forEach((row) => row.classList.toggle("at", row === next));
    (next.querySelector("a") || next).focus();
    next.scrollIntoView({ block: "nearest" });
  } else if (event.key === "x" && at >= 0) {
    const box = rows[at].querySelector("input[type=checkbox]");
    if (box) box.checked = !box.checked;
  } else {
    const within = at >= 0 && rows[at].querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    const button = within || document.querySelector(`main [data-key="${CSS.escape(event.key)}"]`);
    if (!button) return;
    button.focus();
    if (button.matches("button, summary, input[type=radio]")) button.click();
  }
  event.preventDefault();
});

// Local time beside UTC, for a person who is elsewhere.
const addLocalTimes = () => {
  for (const time of document.querySelectorAll("time[datetime]:not([data-local])")) {
    const at = new Date(time.dateTime);
    time.dataset.local = "";
    if (!at.getTimezoneOffset()) continue;
    const isSameDay = at.getDate() === at.getUTCDate();
    const day = isSameDay ? {} : { month: "short", day: "numeric" };
    const text = at.toLocaleString(navigator.language, { ...day, hour: "numeric", minute: "2-digit", timeZoneName: "short" });
    time.append(Object.assign(document.createElement("small"), { textContent: ` (${text})` }));
  }
};
addLocalTimes();

// A form is sent once, whoever clicks twice.
document.addEventListener("submit", (event) => {
  if ("sent" in event.target.dataset) event.preventDefault();
  event.target.dataset.sent = "";
});
addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach((form) => delete form.dataset.sent));

// What is live: a part of the page with the address of its number of changes. A new number fetches the page again.
for (const live of document.querySelectorAll("[data-live]")) {
  // The part that is fetched again has it, too.
  const tell = (text) => document.querySelectorAll("[data-live-state]").forEach((state) => (state.textContent = text));
  let known = live.dataset.version;
  let seen = new Date();
  const look = async () => {
    if (document.hidden) {
      document.addEventListener("visibilitychange", look, { once: true });
      return;
    }
    try {
      const answer = await fetch(live.dataset.live, { credentials: "same-origin", redirect: "error" });
      if (!answer.ok) throw new Error(answer.status);
      const { version, said } = await answer.json();
      const busy = live.contains(document.activeElement) && document.activeElement.matches("input, select, textarea");
      // What somebody has typed is not taken away.
      const typed = [...live.querySelectorAll("input, textarea")].some((field) => field.value !== field.defaultValue);
      const ticked = live.querySelector("input[type=checkbox]:checked");
      if (String(version) !== known && !busy && !typed && !ticked) {
        const page = await fetch(location.href, { credentials: "same-origin", redirect: "error" });
        if (!page.ok) throw new Error(page.status);
        const text = new DOMParser().parseFromString(await page.text(), "text/html");
        const fresh = text.querySelector("[data-live]");
        const focused = document.activeElement && document.activeElement.getAttribute("href");
        live.replaceChildren(...fresh.childNodes);
        document.querySelector("[data-live-too]").replaceChildren(...text.querySelector("[data-live-too]").childNodes);
        addLocalTimes();
        known = fresh.dataset.version;
        live.toggleAttribute("data-is-over", fresh.hasAttribute("data-is-over"));
        if (focused) {
          const again = live.querySelector(`a[href="${CSS.escape(focused)}"]`);
          if (again) { again.focus(); again.closest("tr")?.classList.add("at"); }
        }
      }
      seen = new Date();
      tell(said || "Live");
      if (live.hasAttribute("data-is-over")) return;
    } catch (error) {
      const at = seen.toISOString().slice(11, 19);
      tell(`Not live: the console does not answer, or your session has ended. What you see is of ${at} UTC. Reload the page.`);
    }
    setTimeout(look, 1000);
  };
  setTimeout(look, 1000);
}

// A part that takes the server longer has a page of its own. It is fetched when this page stands.
for (const part of document.querySelectorAll("[data-part]")) {
  const fill = async () => {
    const page = await fetch(part.dataset.part, { credentials: "same-origin", redirect: "error" });
    const text = new DOMParser().parseFromString(await page.text(), "text/html");
    const found = page.ok && text.getElementById(part.id);
    if (found) part.replaceChildren(...found.childNodes);
  };
  // Without it the link stays.
  fill().catch(() => {});
}

// The builder of rules: beside a name stand its meaning, its unit and today's values.
for (const names of document.querySelectorAll("[data-names]")) {
  names.addEventListener("change", () => {
    const [, , meaning, unit, today] = document.getElementById(`name-${names.value}`)?.cells || [];
    const parts = meaning ? [meaning.textContent, unit.textContent, today.textContent && `today ${today.textContent}`] : [];
    document.getElementById(names.getAttribute("aria-describedby")).textContent = parts.filter(Boolean).join("; ");
  });
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

// A chart as PNG: a copy of its SVG that carries its own colours, below its title and above its legend. The policy of
// the page (CSP) refuses style attributes, so the copy has an attribute for each property.
const drawn = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-family", "font-size", "font-weight"];
for (const button of document.querySelectorAll("[data-png]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const part = button.closest("section");
    const svg = part.querySelector("svg");
    const { width, height } = svg.viewBox.baseVal;
    const copy = svg.cloneNode(true);
    const shapes = copy.querySelectorAll("*");
    svg.querySelectorAll("*").forEach((shape, at) => {
      const style = getComputedStyle(shape);
      drawn.forEach((name) => shapes[at].setAttribute(name, style.getPropertyValue(name)));
    });
    copy.setAttribute("width", 2 * width);
    copy.setAttribute("height", 2 * height);
    const text = new XMLSerializer().serializeToString(copy);
    const image = Object.assign(new Image(), { src: `data:image/svg+xml,${encodeURIComponent(text)}` });
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: 2 * width, height: 2 * height + 120 });
    const pen = canvas.getContext("2d");
    const body = getComputedStyle(document.body);
    pen.fillStyle = body.backgroundColor;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 60);
    pen.font = `26px ${body.fontFamily}`;
    pen.fillStyle = body.color;
    pen.fillText(svg.getAttribute("aria-label"), 24, 40, canvas.width - 48);
    let x = 24;
    for (const entry of part.querySelectorAll(".legend span")) {
      pen.fillStyle = getComputedStyle(entry.querySelector(".key")).backgroundColor;
      pen.fillRect(x, canvas.height - 42, 22, 22);
      pen.fillStyle = body.color;
      pen.fillText(entry.textContent, x + 32, canvas.height - 22);
      x += pen.measureText(entry.textContent).width + 72;
    }
    const name = `${button.dataset.png}.png`;
    Object.assign(document.createElement("a"), { href: canvas.toDataURL("image/png"), download: name }).click();
  });
}
