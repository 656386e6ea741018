// The page: input of the user goes to the player, the state of the player goes to the screen.

import { bindDrop, bindHelp, bindKeys, bindPointer, bindSmooth, bindTheme, buildSliders, number } from "./controls.js";
import { GAMEPAD, HeldKeys, PAIRS, pollGamepad } from "./hold.js";
import { Player } from "./player.js";
import { LETTERS, episodeOf, layout, render, renderRate, showPlanned, stepName, tiles, ui } from "./screen.js";
import { ask, upload } from "./upload.js";
import { drawLegend } from "./view.js";
import { notify, say, showStatus } from "./words.js";

const $ = (id) => document.getElementById(id);
const FASTEST = 31; // the end of the speed slider: no pause between frames

let selected = null; // the chosen episode
let waiting = false;
const player = new Player({
  changed: invalidate, notify, status: showStatus, resumed: showResumed, lost, unopened: refresh,
  planned: showPlan,
});

/** Renders once in the next animation frame, however often it is called before. */
function invalidate() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (ui.info) render(player);
  });
}

// Start

async function load() {
  $("empty-text").textContent = "Loading the world";
  $("reload").hidden = true;
  try {
    ui.info = await (await ask("/api/world")).json();
  } catch (error) {
    $("empty-text").textContent = error.message;
    $("reload").hidden = false;
    return;
  }
  const { model, actions, settings: defaults } = ui.info;
  $("model").textContent = model.name;
  document.title = `${model.name} - iVideoGPT`;
  $("reward-row").hidden = !model.reward;
  $("sampling").hidden = !model.tokens; // a picture model draws no random numbers
  showControls(actions);
  showSettings(defaults);
  showEpisodes();
  player.start(ui.info);
}

/** The list of episodes; the selection is kept while its episode exists. */
function showEpisodes() {
  const { episodes } = ui.info;
  const same = episodes.find(({ id, name }) => id === selected?.id && name === selected.name);
  $("episodes").replaceChildren();
  episodes.forEach(addEpisode);
  $("episodes-empty").hidden = episodes.length > 0;
  $("empty-text").textContent = episodes.length
    ? "Choose a start on the left."
    : "Add a recording or two pictures to begin.";
  select(same ?? episodes[0] ?? null, same ? Number($("start-frame").value) : 0);
}

/** Reloads the list of episodes: uploads expire, and a restarted server has none. */
async function refresh() {
  let info;
  try {
    info = await (await ask("/api/world")).json();
  } catch {
    return; // the connection says what is wrong
  }
  const kind = ({ model, actions }) => JSON.stringify([model, actions]);
  if (kind(info) !== kind(ui.info)) location.reload(); // another model, other controls
  ui.info = player.info = info;
  showEpisodes();
  invalidate();
}

/** Shows the start without a world; if ended, the session is lost and perhaps its uploads. */
async function lost(ended) {
  if (ended) await refresh();
  if (!player.state && !player.opening) openSelected();
}

/** The controls for the model's actions: a position in the picture, numbers, or none. */
function showControls(actions) {
  const { dim, pointer } = actions;
  for (const id of ["target-row", "hold-row", "ease-row"]) $(id).hidden = !pointer;
  $("replay").hidden = $("replay-start").hidden = $("goal-set").hidden = !dim;
  $("actions").hidden = pointer || !dim;
  if (pointer) {
    tiles.forEach((tile, world) => bindPointer(tile.querySelector(".picture"), world, pointing));
    return;
  }
  $("help-arrows").textContent = dim ? "Up and down choose an action, left and right change it" : "Not used here";
  if (!dim) return;
  $("help-hold").hidden = false;
  ui.showSliders = buildSliders($("actions"), actions, {
    keys: PAIRS,
    choose: (i) => { ui.action = i; invalidate(); },
    set: (i, value) => { ui.action = i; steer(i, value); },
  });
}

/** Sets one number of the action, and ends the replay. */
function steer(i, value) {
  if (player.replay) setReplay(false);
  player.setTarget(player.targets[player.driven[0]].map((old, k) => (k === i ? value : old)));
}

function picture(episode, frame) {
  return Object.assign(document.createElement("img"), {
    src: `/api/episodes/${encodeURIComponent(episode.id)}/picture?frame=${frame}`, alt: "", width: 64, height: 64,
  });
}

function addEpisode(episode) {
  const label = Object.assign(document.createElement("label"), { className: "episode" });
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "episode", value: episode.id });
  const name = Object.assign(document.createElement("span"), {
    // Names like pusht_00010001 differ at the end.
    textContent: episode.name.replace(/^.*_0*(?=\d)/, ""),
    title: `${episode.name}, ${episode.frames} frames${episode.familiar ? "" : "; not this model's world"}`,
  });
  input.addEventListener("change", () => {
    select(episode);
    openIfFree();
  });
  label.addEventListener("dblclick", openSelected);
  label.append(input, picture(episode, 0), name);
  $("episodes").append(label);
  $("episodes-empty").hidden = true;
}

function select(episode, start = 0) {
  selected = episode;
  $("chosen").hidden = !episode;
  if (!episode) return;
  for (const radio of document.querySelectorAll(".episode input")) radio.checked = radio.value === episode.id;
  $("start-frame").max = Math.max(0, episode.frames - ui.info.model.context_frames);
  $("start-frame").value = start;
  showContext();
}

function showContext() {
  const start = Number($("start-frame").value);
  $("start-frame-value").textContent = `${start} of ${$("start-frame").max}`;
  $("context").replaceChildren(...Array.from({ length: ui.info.model.context_frames }, (_, i) => {
    return Object.assign(picture(selected, start + i), { alt: `Frame ${start + i}` });
  }));
}

/** After a reload the page shows the start of the open world. */
function showResumed(state) {
  const episode = episodeOf(state);
  if (episode) select(episode, state.start);
  showSettings(state.settings);
}

/** Opens at once if no world would be lost. */
function openIfFree() {
  if (!player.newest) openSelected();
}

function openSelected() {
  if (!selected) return;
  if (player.open(selected.id, Number($("start-frame").value), settings())) say(`A new world from ${selected.name}`);
}

async function take(files) {
  if (!files.length || !ui.info) return;
  $("upload-error").textContent = "";
  $("upload-status").textContent = `Reading ${files.length === 1 ? files[0].name : `${files.length} files`}`;
  try {
    const { model, limits } = ui.info;
    const episode = await upload(files, { needed: model.context_frames, limit: limits.upload_bytes });
    const world = episode.familiar ? "" : " Not this model's world: it never saw such pictures, so do not trust it here.";
    $("upload-status").textContent = `Added ${episode.name}, ${episode.frames} frames.${world}`;
    ui.info.episodes.push(episode);
    addEpisode(episode);
    select(episode);
    $("episodes").scrollTop = $("episodes").scrollHeight;
    openIfFree();
  } catch (error) {
    $("upload-status").textContent = "";
    $("upload-error").textContent = error.message;
    $("upload-error").scrollIntoView({ block: "nearest" });
  }
}

// Driving

const pointing = {
  start(world) {
    if (player.forked && player.drive !== "all") player.setDrive(String(world));
    if ($("hold").checked) player.hold(true);
    else player.continueHere();
  },
  target(world, [x, y]) {
    const { low, high } = ui.info.actions;
    if (player.replay) setReplay(false); // taking the wheel
    player.setTarget([low[0] + x * (high[0] - low[0]), low[1] + y * (high[1] - low[1])], world);
  },
  end() {
    if (player.held) player.hold(false);
  },
};

function arrow(dx, dy, event) {
  const { dim, pointer, low, high, names } = ui.info?.actions ?? {};
  if (!dim) return;
  const target = [...player.targets[player.driven[0]]];
  const move = (i, by) => {
    const value = target[i] + (by * (event.shiftKey ? 4 : 1) * (high[i] - low[i])) / 32;
    target[i] = Math.min(Math.max(low[i], high[i]), Math.max(Math.min(low[i], high[i]), value));
  };
  if (pointer) {
    move(0, dx);
    move(1, dy);
    say(`Target ${target.map(Math.round).join(", ")}`);
  } else if (dy) ui.action = (ui.action + dy + dim) % dim;
  else {
    move(ui.action, dx);
    say(`${names[ui.action]} ${number(target[ui.action])}`);
  }
  if (player.replay) setReplay(false);
  player.setTarget(target);
}

/** Held keys and buttons: a number of the action is at an end of its range while they are held, at rest after. */
const held = new HeldKeys({
  started: () => player.hold(true),
  ended: () => player.held && player.hold(false),
  set: steer,
});

/** Sticks: shares -1 to 1 of the way from rest to an end of the range, one for each number of the action. */
function stick(shares) {
  const { dim, pointer, low, high } = ui.info?.actions ?? {};
  if (!dim || !player.state) return;
  if (!pointer) return held.stick(shares, ui.info.actions);
  const moved = shares.slice(0, 2).some((share) => share !== 0);
  if (moved) {
    // The vertical stick points up, the picture's second number down.
    const target = player.targets[player.driven[0]].map((old, i) => {
      const to = old + ((i ? -1 : 1) * shares[i] * (high[i] - low[i])) / 40;
      return Math.min(high[i], Math.max(low[i], to));
    });
    if (player.replay) setReplay(false);
    player.setTarget(target);
  }
  held.run("stick", moved);
}

function togglePlay() {
  if (player.running) player.pause();
  else {
    // Without a target nothing would move: replay the recording first.
    const still = !player.aimed && !player.newest && ui.info.actions.dim > 0;
    if (still && episodeOf(player.state)?.actions && player.state.true_steps) setReplay(true);
    player.play();
  }
  say(player.playing ? "Playing" : "Paused");
}

function fork() {
  if (player.forked) return notify("There are two worlds already. Keep one of them first.");
  return player.fork() && say("Two worlds. B is driven.");
}

function setDrive(drive) {
  if (!player.forked) return;
  player.setDrive(drive);
  say(drive === "all" ? "Both are driven" : `${LETTERS[drive]} is driven`);
}

function setReplay(on) {
  if (on && !episodeOf(player.state)?.actions) return notify("This recording has no actions to replay.");
  player.replay = on;
  say(on ? "The episode's actions are replayed" : "You drive");
  return invalidate();
}

function replayFromStart() {
  player.pause();
  player.rewind(0);
  setReplay(true);
  if (player.replay) player.play();
}

function compare() {
  player.comparing = !player.comparing;
  player.fill();
  render(player);
  if (player.comparing) $("comparison").scrollIntoView({ block: "nearest" });
}

function look(step) {
  player.look(step);
  say(`Looking at ${stepName(step)}`);
}

// Plans

/** The last context frame of the selection is the goal. */
function setGoal() {
  if (!selected) return;
  const frame = Number($("start-frame").value) + ui.info.model.context_frames - 1;
  ui.goal = { episode: selected.id, frame };
  $("goal-picture").src = picture(selected, frame).src;
  $("goal-picture").alt = `Goal: frame ${frame} of ${selected.name}`;
  say(`The goal is frame ${frame} of ${selected.name}`);
  invalidate();
}

function plan() {
  player.plan(ui.goal.episode, ui.goal.frame);
  say("Searching a plan");
}

/** The frames of the plan play; then the world follows it. */
function showPlan() {
  const { search } = player;
  let shown = 0;
  const timer = setInterval(() => {
    if (player.search !== search) return clearInterval(timer);
    if (shown < search.frames.length) return showPlanned(search.frames, shown++);
    clearInterval(timer);
    return player.followPlan();
  }, 100);
}

// Settings

function settings() {
  return {
    greedy: $("greedy").checked,
    temperature: Number($("temperature").value),
    top_k: wholeNumber($("top-k")),
    seed: wholeNumber($("seed")),
  };
}

/** The nearest allowed whole number to the typed text. */
function wholeNumber(input) {
  const value = Math.round(Number(input.value)) || 0;
  input.value = Math.min(Number(input.max), Math.max(Number(input.min), value));
  return Number(input.value);
}

function showSettings({ greedy, temperature, top_k: topK, seed }) {
  $("greedy").checked = greedy;
  $("temperature").value = temperature;
  $("top-k").value = topK;
  $("seed").value = seed;
  $("temperature-value").textContent = Number($("temperature").value).toFixed(2);
  $("temperature").disabled = $("top-k").disabled = greedy;
}

function showSpeed() {
  const value = Number($("speed").value);
  player.speed = value >= FASTEST ? Infinity : value;
  $("speed-value").textContent = value >= FASTEST ? "as fast as it can" : `${value} frames/s`;
  $("speed").setAttribute("aria-valuetext", $("speed-value").textContent);
}

async function save(format) {
  const path = `/api/sessions/${player.link.session}/download?format=${format}&world=${player.driven[0]}`;
  try {
    const href = URL.createObjectURL(await (await ask(path)).blob());
    Object.assign(document.createElement("a"), { href, download: `${ui.info.model.name}.${format}` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000);
  } catch (error) {
    notify(error.message);
  }
}

// Wiring

function on(type, handlers) {
  for (const [id, run] of Object.entries(handlers)) $(id).addEventListener(type, run);
}

const changed = () => {
  showSettings(settings());
  player.sample(settings());
};
const lookAround = (by) => {
  const step = (player.view ?? player.newest) + by;
  look(Math.min(player.newest, Math.max(player.earliest, step)));
};

on("click", {
  reload: load, retry: () => player.link.connect(), open: openSelected,
  play: togglePlay, step: () => player.step(), back: () => player.back(),
  fork, compare, replay: () => setReplay(!player.replay), "replay-start": replayFromStart,
  continue: () => player.rewind(player.view), newest: () => look(player.newest),
  "goal-set": setGoal, plan, "plan-cancel": () => player.dropPlan(),
  "save-mp4": () => save("mp4"), "save-npz": () => save("npz"),
  "toast-close": () => { $("toast").hidden = true; },
  psnr: () => ui.hover !== null && ui.hover <= player.newest && look(ui.hover),
});
on("change", {
  greedy: changed, temperature: changed, "top-k": changed, seed: changed,
  drive: (event) => setDrive(event.target.value), "start-frame": openIfFree, hold: invalidate,
  ease: () => { player.eased = $("ease").checked; },
  files: () => {
    take([...$("files").files]);
    $("files").value = ""; // the same file may be picked again
  },
});
on("input", {
  timeline: () => look(Number($("timeline").value)), "start-frame": showContext, speed: showSpeed,
  temperature: () => showSettings(settings()),
});
on("pointermove", { psnr: (event) => { ui.hover = ui.stepAt?.(event.offsetX) ?? null; invalidate(); } });
on("pointerleave", { psnr: () => { ui.hover = null; invalidate(); } });
tiles.forEach((tile, world) => tile.querySelector(".keep").addEventListener("click", () => player.join(world)));
bindKeys({
  " ": togglePlay, s: () => player.step(), ".": () => player.step(), r: () => player.back(),
  f: fork, c: compare, e: () => setReplay(!player.replay), k: () => player.join(player.driven[0]),
  1: () => setDrive("0"), 2: () => setDrive("1"), 3: () => setDrive("all"),
  "[": () => lookAround(-1), "]": () => lookAround(1), "?": () => $("help").showModal(),
  ArrowLeft: (event) => arrow(-1, 0, event), ArrowRight: (event) => arrow(1, 0, event),
  ArrowUp: (event) => arrow(0, -1, event), ArrowDown: (event) => arrow(0, 1, event),
}, () => player.state !== null);
held.bind(() => (player.state && ui.info.actions.dim && !ui.info.actions.pointer ? ui.info.actions : null));
pollGamepad({
  shares: stick,
  pressed: (button) => ({ [GAMEPAD.play]: togglePlay, [GAMEPAD.back]: () => player.back(),
    [GAMEPAD.step]: () => player.step(), [GAMEPAD.replay]: () => setReplay(!player.replay) })[button]?.(),
}, () => player.state !== null);
bindDrop(take);
bindTheme();
bindSmooth(() => { layout(player); });
bindHelp();
showSpeed();
drawLegend($("legend"));
new ResizeObserver(() => layout(player)).observe($("stage"));
addEventListener("resize", () => {
  layout(player);
  invalidate();
});
setInterval(() => renderRate(player), 500);
load();
