// Messages of the page: errors, text for screen readers, the state of the connection.

const $ = (id) => document.getElementById(id);

let toastTimer = 0;
export function notify(sentence) {
  $("toast-text").textContent = sentence[0].toUpperCase() + sentence.slice(1);
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 10000);
}

let sayTimer = 0;
/** Announces to screen readers, after a short pause. */
export function say(sentence) {
  clearTimeout(sayTimer);
  sayTimer = setTimeout(() => { $("live").textContent = sentence; }, 400);
}

let statusTimer = 0;
export function showStatus({ state, text, seconds }) {
  clearInterval(statusTimer);
  if (state === "connecting") return; // the last message stays until the state changes
  $("link").dataset.state = state;
  $("link").textContent = { open: "Connected", lost: "Reconnecting", closed: "Closed" }[state];
  $("banner").hidden = state === "open";
  if (state === "open") return;
  $("retry").textContent = state === "closed" ? "Connect" : "Try now";
  const until = performance.now() + 1000 * (seconds ?? 0);
  const count = () => {
    const left = Math.max(0, Math.ceil((until - performance.now()) / 1000));
    const when = left ? ` in ${left} s` : "";
    $("banner-text").textContent = seconds ? `${text} Trying again${when}.` : text;
  };
  count();
  if (seconds) statusTimer = setInterval(count, 500);
}
