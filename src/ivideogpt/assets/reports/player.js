"use strict";
(() => {
  const root = document.documentElement, { frames, context, columns, size, goal } = document.body.dataset;
  const [count, known, across, side] = [frames, context, columns, size].map(Number);
  const at = (id) => document.getElementById(id);
  const play = at("play"), slider = at("frame"), where = at("where"), speed = at("speed"), every = at("every");
  const tiles = [...document.querySelectorAll(".rows figure")].map((figure) => ({
    pen: figure.querySelector("canvas").getContext("2d"), sheet: figure.querySelector("img"),
  }));
  const cursors = [...document.querySelectorAll(".cursor")];
  const endPause = 4; // ticks on the last frame before it starts over
  let shown = 0, waited = 0, timer = 0;

  function name(frame) {
    if (frame >= known) return `+${frame - known + 1} of ${count - known}`;
    return goal === "1" && frame === 0 ? "goal" : `context ${frame + 1 - goal} of ${known - goal}`;
  }
  function show(frame) {
    shown = (frame + count) % count;
    const x = (shown % across) * side, y = Math.floor(shown / across) * side;
    for (const { pen, sheet } of tiles) pen.drawImage(sheet, x, y, side, side, 0, 0, side, side);
    for (const line of cursors) {
      const place = Number(line.dataset.left) + Number(line.dataset.step) * (shown - known);
      line.setAttribute("x1", place);
      line.setAttribute("x2", place);
      line.style.visibility = shown < known ? "hidden" : "visible";
    }
    root.classList.toggle("in-context", shown < known);
    slider.value = shown;
    slider.setAttribute("aria-valuetext", name(shown));
    where.textContent = name(shown);
  }
  function tick() {
    timer = setTimeout(tick, 1000 / Number(speed.value));
    if (shown === count - 1 && ++waited < endPause) return;
    waited = 0;
    show(shown + 1);
  }
  function run(on) {
    clearTimeout(timer);
    timer = on ? setTimeout(tick, 1000 / Number(speed.value)) : 0;
    play.textContent = on ? "Pause" : "Play";
  }
  function step(frame) {
    run(false);
    show(frame);
  }

  play.addEventListener("click", () => run(!timer));
  slider.addEventListener("input", () => step(Number(slider.value)));
  every.addEventListener("change", () => root.classList.toggle("every", every.checked));
  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest("button, select, summary, a, input:not(#frame)");
    if (event.ctrlKey || event.metaKey || event.altKey || busy) return;
    const keys = {
      " ": () => run(!timer), ArrowLeft: () => step(shown - 1), ArrowRight: () => step(shown + 1),
      Home: () => step(0), End: () => step(count - 1),
    };
    // The page scrolls with Home and End; on the slider they mean its ends.
    if (!keys[event.key] || (/Home|End/.test(event.key) && event.target !== slider)) return;
    event.preventDefault();
    keys[event.key]();
  });

  Promise.all(tiles.map(({ sheet }) => sheet.decode())).then(() => {
    root.classList.add("live");
    at("controls").hidden = false;
    show(0);
    // Nothing moves unasked for those who asked their system for less motion.
    run(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  });
})();
