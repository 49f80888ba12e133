// What the pages do beyond links and forms; without it they work all the same.
"use strict";

const LOOK_EVERY = 4000; // ms
const TYPING_PAUSE = 200; // ms

/** The same page as the server draws it now, as a document. */
async function drawn(address, signal) {
  const answer = await fetch(address, { signal, credentials: "same-origin" });
  if (!answer.ok) throw new Error(answer.statusText);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

/** Put a part of a newer drawing in place of ours. */
function replace(selector, page) {
  const ours = document.querySelector(selector);
  const theirs = page.querySelector(selector);
  if (ours && theirs) ours.replaceWith(theirs);
}

/** Search while somebody types; a newer question cancels the older one. */
function searchAsTyped(form) {
  let timer, running;
  const search = async () => {
    running?.abort();
    running = new AbortController();
    const address = `${form.getAttribute("action")}?${new URLSearchParams(new FormData(form))}`;
    try {
      replace("#results", await drawn(address, running.signal));
      history.replaceState(null, "", address);
    } catch (error) {
      if (error.name !== "AbortError") form.submit();
    }
  };
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, TYPING_PAUSE);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    search();
  });
}

/** Look whether memory has changed: draw the part that may be drawn anew, or say so. */
async function look() {
  if (document.hidden) return;
  try {
    const answer = await fetch(document.body.dataset.live, { credentials: "same-origin" });
    if (!answer.ok) return;
    const { stamp } = await answer.json();
    if (stamp === document.body.dataset.stamp) return;
    if (document.querySelector("[data-redraw]")) {
      const page = await drawn(location.href);
      replace("[data-redraw]", page);
      replace("nav[aria-label=Pages]", page);
    } else {
      document.getElementById("news").hidden = false;
    }
    document.body.dataset.stamp = stamp;
  } catch {
    // the server has stopped; the page stays as it is
  }
}

document.querySelectorAll("form[data-search]").forEach(searchAsTyped);
document.querySelectorAll("select[data-go]").forEach((select) => {
  select.addEventListener("change", () => select.form.submit());
});
document.addEventListener("keydown", (event) => {
  const box = document.querySelector("input[type=search]");
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && box && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    box.focus();
    box.select();
  }
});
setInterval(look, LOOK_EVERY);
