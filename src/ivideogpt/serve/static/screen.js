// Rendering of the state into the document.

import { clear, drawCurve, drawDifference, drawPixels, drawSpark, sharpScale } from "./view.js";
import { say } from "./words.js";

const $ = (id) => document.getElementById(id);
export const LETTERS = ["A", "B"];
const SPARK = 60; // steps in the sparkline

export const tiles = [...document.querySelectorAll("#tiles .tile")];
const drawn = new WeakMap(); // canvas -> the frame on it
let shape = ""; // what decides how much room the pictures have
let said = null; // the frame last spoken of

/** State of the page that belongs to no world. */
export const ui = {
  info: null,
  action: 0, // the action that the arrow keys change, where it is not a place
  showSliders: null,
  hover: null, // a step on the curve
  goal: null, // {episode, frame}
  stepAt: null, // from a place on the curve to its step
};

export function stepName(step) {
  const { context_frames: count } = ui.info.model;
  return step > 0 ? `step ${step}` : `context frame ${step + count} of ${count}`;
}

export function episodeOf(state) {
  return state && ui.info.episodes.find(({ id }) => id === state.episode);
}

const plural = (count) => `${count} ${count === 1 ? "step" : "steps"}`;

/** The expected error of a frame as a word, measured on held-out clips; "" without a measurement. */
function errorWord(frame) {
  return frame?.expected_error ? `${frame.expected_error.name} error expected` : "";
}

export function render(player) {
  const open = player.tracks.length > 0 && player.state !== null;
  $("empty").hidden = open;
  $("tiles").hidden = $("deck").hidden = !open;
  $("comparison").hidden = !open || !player.comparing;
  $("open-note").hidden = !player.newest;
  $("open-note").textContent = `This closes the world with its ${plural(player.newest)}.`;
  if (!open) return;
  tiles.forEach((tile, world) => renderTile(player, tile, world));
  renderDeck(player);
  renderReadings(player);
  const now = [player.tracks.length, player.comparing].join();
  if (now !== shape) layout(player);
  shape = now;
  if (player.comparing) renderComparison(player);
}

function draw(canvas, frame) {
  if (!frame?.pixels || drawn.get(canvas) === frame) return;
  drawn.set(canvas, frame);
  drawPixels(canvas, frame);
}

function renderTile(player, tile, world) {
  tile.hidden = world >= player.tracks.length;
  if (tile.hidden) return;
  const step = player.shown(world);
  const frame = player.tracks[world].frames.get(step);
  const driven = player.driven.includes(world);
  const name = player.forked ? `World ${LETTERS[world]}` : "World";
  const spoken = player.forked && driven ? `${name}, driven` : name;
  draw(tile.querySelector("canvas"), frame);
  tile.classList.toggle("driven", player.forked && driven);
  tile.querySelector(".name").textContent = name;
  tile.querySelector(".at").textContent = [stepName(step), errorWord(frame)].filter(Boolean).join(", ");
  tile.querySelector(".keep").hidden = tile.querySelector(".tag").hidden = !player.forked;
  const help = ui.info.actions.pointer ? "Arrow keys move the target, S makes a step." : "S makes a step.";
  tile.querySelector(".picture").setAttribute("aria-label", `${spoken}, ${stepName(step)}. ${help}`);
  // For an old frame, or during a replay: the action that led to it.
  const past = player.view !== null || player.replay;
  const place = past ? frame?.action : driven && player.targets[world];
  renderTarget(tile.querySelector(".target"), ui.info.actions.pointer ? place : null, past);
}

function renderTarget(target, place, past) {
  target.toggleAttribute("hidden", !place); // the hidden property is of HTML elements only
  target.classList.toggle("past", past);
  if (!place) return;
  const { low, high } = ui.info.actions;
  for (const [i, side] of ["left", "top"].entries()) {
    target.style[side] = `${(100 * (place[i] - low[i])) / (high[i] - low[i])}%`;
  }
}

function renderDeck(player) {
  const { newest, view, earliest, running, forked } = player;
  const step = view ?? newest;
  const timeline = $("timeline");
  timeline.min = earliest;
  timeline.max = newest;
  timeline.value = step;
  timeline.setAttribute("aria-valuetext", step > 0 ? `step ${step} of ${newest}` : stepName(step));
  const { context_frames: count } = ui.info.model;
  $("timeline-value").textContent = step > 0 ? `step ${step} of ${newest}` : `context ${step + count} of ${count}`;
  $("hint").textContent = view === null ? idleHint(player) : pastHint(player, step);
  $("continue").hidden = $("newest").hidden = view === null;
  $("play").querySelector("span").textContent = running ? "Pause" : "Play";
  $("play").querySelector("use").setAttribute("href", running ? "#i-pause" : "#i-play");
  $("back").disabled = step <= 0;
  $("fork").hidden = forked;
  $("drive").hidden = !forked;
  for (const input of $("drive").querySelectorAll("input")) input.checked = input.value === player.drive;
  renderPlan(player);
  $("compare").setAttribute("aria-pressed", player.comparing);
  $("replay").setAttribute("aria-pressed", player.replay);
  $("replay").disabled = $("replay-start").disabled = !episodeOf(player.state)?.actions || !player.state.true_steps;
  $("save-world").textContent = forked ? ` of world ${LETTERS[player.driven[0]]}` : "";
  ui.showSliders?.(player.targets[player.driven[0]], ui.action);
}

/** True while a world without steps begins at the goal itself, so that there is nothing to plan. */
function startsAtGoal({ state, newest }) {
  return ui.goal !== null && newest === 0 && state?.episode === ui.goal.episode
    && state.start + ui.info.model.context_frames - 1 === ui.goal.frame;
}

function renderPlan(player) {
  const { search, follow } = player;
  $("goal-row").hidden = !ui.goal;
  $("plan").disabled = search !== null || follow.length > 0;
  $("plan-cancel").hidden = !$("plan").disabled;
  if (!search && !follow.length) $("plan-figure").hidden = true;
  $("plan-status").textContent = search?.actions ? "This is the plan." : search ? "Searching."
    : follow.length ? "The world follows the plan."
    : startsAtGoal(player) ? "The world begins at the goal. Choose another start." : "";
}

/** Draws frame ``index`` of a plan. */
export function showPlanned(frames, index) {
  $("plan-figure").hidden = false;
  $("plan-at").textContent = `${index + 1} of ${frames.length}`;
  drawPixels($("plan-picture"), frames[index]);
}

function pastHint(player, step) {
  const lost = Math.max(...player.driven.map((world) => player.tracks[world].steps)) - Math.max(0, step);
  return lost > 0 ? `forgets ${plural(lost)}` : "";
}

function idleHint(player) {
  const { pointer, dim } = ui.info.actions;
  if (player.replay) return `The recorded actions drive. ${pointer ? "Touch the picture" : "Move an action"} to take over.`;
  if (pointer && $("hold").checked) return "Hold and drag on the picture to drive.";
  if (pointer) return "Point at the picture, then Step or Play.";
  if (!dim) return "This model needs no actions: Step or Play.";
  const hasKeys = matchMedia("(hover: hover)").matches;
  return hasKeys ? "Hold the letters beside the actions to drive." : "Set the actions below, then Step or Play.";
}

function renderReadings(player) {
  const world = player.driven[0];
  const { frames, steps } = player.tracks[world];
  const step = player.shown(world);
  const frame = frames.get(step);
  const show = (id, value, text) => { $(id).textContent = Number.isFinite(value) ? text(value) : "-"; };
  renderExpectedError(frame, step);
  show("milliseconds", frame?.milliseconds, (ms) => `${Math.round(ms)} ms`);
  show("reward", frame?.reward, (reward) => (Math.abs(reward) < 0.005 ? 0 : reward).toFixed(2)); // never -0.00
  $("target").textContent = player.targets[world].map(Math.round).join(", ");
  renderEntropy(frames, step);
  renderRate(player);
  if (player.running || step !== steps || !frame || said === frame) return;
  said = frame;
  say([stepName(step), errorWord(frame)].filter(Boolean).join(", "));
}

function renderExpectedError(frame, step) {
  const calibration = ui.info.model.expected_error;
  const expected = frame?.expected_error;
  $("error-reading").hidden = !calibration;
  if (!calibration) return;
  $("error-word").textContent = expected?.name ?? "-";
  $("error-word").dataset.word = expected?.name ?? "";
  $("error-note").textContent = expected
    ? `At least ${expected.psnr.toFixed(0)} dB in ${Math.round(100 * expected.hit_rate)} % of such frames, `
      + `measured on ${calibration.clips} held-out clips`
    : step > 0 ? `Measured up to step ${calibration.frames} only` : "Context frames are the recorded ones";
}

/** Token entropy of the last steps, with the limits of the expected error where it depends on it. */
function renderEntropy(frames, step) {
  const first = Math.max(1, step - SPARK + 1);
  const count = Math.max(0, step - first + 1);
  const values = Array.from({ length: count }, (_, i) => frames.get(first + i)?.entropy ?? null);
  const entropy = values.at(-1) ?? null;
  if (entropy !== null) $("entropy-reading").hidden = false; // a model that draws no tokens never has any
  if ($("entropy-reading").hidden) return;
  $("entropy").textContent = entropy === null ? "-" : `${entropy.toFixed(2)} bits`;
  const { signal, levels = [] } = ui.info.model.expected_error ?? {};
  const limits = signal === "entropy" ? levels.map(({ limit }) => limit).filter((limit) => limit !== null) : [];
  drawSpark($("spark"), values, limits.map((nats) => nats / Math.LN2), SPARK);
}

export function renderRate({ rate }) {
  $("rate").textContent = rate === null ? "-" : rate.toFixed(1);
}

function renderComparison(player) {
  const world = player.driven[0];
  const step = player.shown(world);
  const frame = player.tracks[world].frames.get(step);
  const { true_steps: last } = player.state;
  const truth = step > 0 ? player.truth.get(step) : frame;
  $("truth-at").textContent = step > last ? `ended at ${last}` : stepName(step);
  $("difference-of").textContent = player.forked ? LETTERS[world] : "";
  if (truth?.pixels && frame?.pixels) {
    draw($("truth"), truth);
    if (drawn.get($("difference")) !== frame) drawDifference($("difference"), frame, truth);
    drawn.set($("difference"), frame);
  } else {
    // The last true frame stays until the next arrives; a difference to it would be wrong.
    for (const id of step > last ? ["truth", "difference"] : ["difference"]) {
      clear($(id));
      drawn.delete($(id));
    }
  }
  renderCurve(player, last);
}

function renderCurve(player, last) {
  const series = player.tracks.map(({ frames }) => {
    const known = [...frames.values()].filter(({ psnr }) => Number.isFinite(psnr));
    return new Map(known.map(({ step, psnr }) => [step, psnr]));
  });
  const at = ui.hover ?? player.shown(player.driven[0]);
  ui.stepAt = drawCurve($("psnr"), series, last, at, ui.hover !== null);
  const letter = (i) => (player.forked ? `${LETTERS[i]} ` : "");
  const words = series.flatMap((one, i) => (one.has(at) ? [`${letter(i)}${one.get(at).toFixed(1)} dB`] : []));
  $("psnr-value").textContent = words.length ? `${words.join(", ")} at step ${at}` : "";
  const meant = player.replay || !ui.info.actions.dim;
  $("psnr-note").textContent = !last ? "Nothing was recorded after the context frames."
    : meant ? "Higher is closer to the recording."
    : "Only meaningful while the recorded actions are replayed.";
}

/** Sizes the pictures as large as the window allows; one picture px is a whole number of screen px. */
export function layout(player) {
  if (!ui.info || $("tiles").hidden) return;
  const size = ui.info.model.resolution;
  const stage = $("stage");
  const count = player.tracks.length;
  const gap = parseFloat(getComputedStyle($("tiles")).columnGap) || 0;
  const isPhone = innerWidth <= 480;
  const room = isPhone ? $("tiles").clientWidth : stage.clientWidth;
  const width = (room - gap * (count - 1)) / count - 2;
  const rest = stage.scrollHeight - tiles[0].querySelector("canvas").getBoundingClientRect().height;
  const height = innerHeight - stage.getBoundingClientRect().top - scrollY - rest - 16;
  // On a phone the picture takes the whole width, and the page scrolls.
  const space = isPhone ? width : Math.min(width, Math.max(height, 256));
  const isSmooth = document.documentElement.hasAttribute("data-smooth");
  const scale = isSmooth || isPhone ? space / size : sharpScale(space, size);
  const small = Math.min(innerHeight < 960 ? 128 : 192, (stage.clientWidth - gap) / 2 - 2);
  stage.style.setProperty("--side", `${Math.floor(size * scale * 100) / 100}px`);
  stage.style.setProperty("--small", `${Math.floor(size * sharpScale(small, size) * 100) / 100}px`);
}
