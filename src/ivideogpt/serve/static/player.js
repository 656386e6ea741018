// State of the worlds and all messages about them. It draws nothing.

import { Link } from "./socket.js";
import { Filler, Track, trim } from "./frames.js";

const RATE_WINDOW = 3000; // ms over which frames a second are counted
// An eased target moves by at most this share of its range a step, as in the recordings.
const STRIDE = 1 / 12;

export class Player {
  /**
   * on: changed(), notify(sentence), status(status), resumed(state), unopened(): a start was refused,
   * lost(ended): there is no world to come back to, where ended because the session is gone.
   */
  constructor(on) {
    this.on = on;
    this.state = null;
    this.tracks = [];
    this.truth = new Map();
    this.view = null; // the step that is shown, or null for the newest
    this.targets = [[], []];
    this.drive = "0";
    this.playing = false;
    this.held = false;
    this.replay = false;
    this.eased = true;
    this.aimed = false; // whether the target is the user's own
    this.comparing = false;
    this.speed = 10; // frames a second, or Infinity
    this.owed = 0; // single steps asked for while no more may be in flight
    this.inFlight = new Map(); // request -> {worlds, left}
    this.arrivals = [];
    this.nextAt = 0;
    this.opening = 0;
    this.search = null; // the plan that is searched or shown: {request, frames, actions}
    this.follow = []; // actions of a plan that are still to be taken
    this.changing = null; // the request of a fork or join that is not answered yet
    this.link = new Link({
      hello: (message, asked) => this.hello(message, asked),
      state: (message) => this.answered(message),
      error: (message) => this.refused(message),
      plan: (message) => this.planned(message),
      frame: (frame) => this.frame(frame),
      status: (status) => this.status(status),
    });
    this.filler = new Filler((message) => this.link.send(message));
  }

  start(info) {
    this.info = info;
    const { low, high } = info.actions;
    this.targets = [0, 1].map(() => low.map((value, i) => (value + high[i]) / 2));
    this.link.connect();
  }

  // Input of the user

  /** Returns whether the request was sent; so do fork and join. */
  open(episode, start, settings) {
    this.dropPlan();
    this.pause();
    const request = this.link.send({ type: "open", episode, start, settings });
    if (request === null) return false;
    this.opening = request;
    this.tracks = [new Track(0, new Map(), request)];
    this.truth.clear();
    this.view = null;
    this.drive = "0";
    this.replay = false;
    this.aimed = false;
    return true;
  }

  step() {
    this.dropPlan();
    this.continueHere();
    this.owed = Math.min(this.owed + 1, this.info.limits.steps_in_flight);
    this.pump();
  }

  play() {
    this.continueHere();
    this.playing = true;
    this.nextAt = 0;
    this.pump();
    this.on.changed();
  }

  pause() {
    this.playing = false;
    this.held = false;
    this.owed = 0;
    this.on.changed();
  }

  /** Steps continue while the picture is held, as if playing. */
  hold(held) {
    if (held) {
      this.dropPlan();
      this.continueHere();
    }
    this.held = held;
    this.nextAt = 0;
    this.pump();
    this.on.changed();
  }

  /** Searches actions that bring the driven world to frame ``frame`` of an episode. */
  plan(episode, frame) {
    this.dropPlan();
    this.pause();
    this.continueHere();
    const request = this.link.send({ type: "plan", world: this.driven[0], episode, frame });
    if (request !== null) this.search = { request, frames: [], actions: null };
    this.on.changed();
  }

  /** Cancels the plan, searched, shown or followed; its later messages are ignored. */
  dropPlan() {
    if (this.search && !this.search.actions) this.link.send({ type: "cancel" });
    if (this.follow.length) this.playing = false;
    this.search = null;
    this.follow = [];
    this.on.changed();
  }

  /** The world takes the actions of the plan that was found. */
  followPlan() {
    if (!this.search?.actions) return;
    this.follow = this.search.actions;
    this.search = null;
    this.replay = false;
    this.play();
  }

  back() {
    this.dropPlan();
    this.pause();
    this.rewind((this.view ?? Math.max(...this.driven.map((world) => this.expected(world)))) - 1);
  }

  /** Continue from the frame that is shown. */
  continueHere() {
    if (this.view !== null) this.rewind(this.view);
    this.view = null;
  }

  rewind(to) {
    const step = Math.max(0, to);
    const worlds = this.driven.filter((world) => this.expected(world) > step);
    this.view = null;
    if (worlds.length) {
      const request = this.link.send({ type: "rewind", world: worlds.length > 1 ? "all" : worlds[0], step });
      // Remove frames at once: if the connection is lost before the answer, they must not reappear.
      if (request !== null) worlds.forEach((world) => this.tracks[world].cut(step, request));
    }
    this.on.changed();
  }

  fork() {
    this.dropPlan();
    if (this.tracks.length !== 1 || this.changing !== null || !this.link.ready) return false;
    this.held = false; // the pointer is on A, and B is driven from now on
    this.continueHere();
    this.changing = this.link.send({ type: "fork" });
    this.drive = "1";
    this.on.changed();
    return true;
  }

  join(keep) {
    if (this.tracks.length < 2 || this.changing !== null || !this.link.ready) return false;
    this.pause();
    this.keep = keep;
    this.changing = this.link.send({ type: "join", keep });
    return true;
  }

  setDrive(drive) {
    if (drive !== "all" && drive !== this.drive) this.held = false; // what is held is the other world
    if (drive === "all") this.targets = [0, 1].map(() => this.targets[this.driven[0]]);
    this.drive = drive;
    this.on.changed();
  }

  setTarget(action, world = this.driven[0]) {
    for (const one of this.drive === "all" ? [0, 1] : [world]) this.targets[one] = action;
    this.aimed = true;
    this.on.changed();
  }

  look(step) {
    this.pause();
    this.view = step >= this.newest ? null : step;
    this.fill();
    this.on.changed();
  }

  sample(settings) {
    if (this.state) this.link.send({ type: "settings", settings });
  }

  // State

  get forked() {
    return this.tracks.length > 1;
  }

  get driven() {
    if (!this.forked) return [0];
    return this.drive === "all" ? [0, 1] : [Number(this.drive)];
  }

  get newest() {
    return Math.max(0, ...this.tracks.map((track) => track.steps));
  }

  get earliest() {
    return 1 - this.info.model.context_frames;
  }

  get running() {
    return this.playing || this.held;
  }

  shown(world) {
    const { steps } = this.tracks[world];
    return this.view === null ? steps : Math.min(this.view, steps);
  }

  /** Steps of a world when all requested ones have arrived. */
  expected(world) {
    const { steps, since } = this.tracks[world];
    const coming = ([request, { worlds }]) => request > since && worlds.includes(world);
    return steps + [...this.inFlight].filter(coming).length;
  }

  /** Recent imagined frames a second, or null when the world does not play. */
  get rate() {
    const now = performance.now();
    this.arrivals = this.arrivals.filter((time) => now - time < RATE_WINDOW);
    const span = this.arrivals.at(-1) - this.arrivals[0];
    if (this.arrivals.length < 3 || now - this.arrivals.at(-1) > 1500) return null;
    return (1000 * (this.arrivals.length - 1)) / span;
  }

  // Steps

  /** Requests the next steps, as many as the speed and the limit of open requests allow. */
  pump() {
    clearTimeout(this.timer);
    while (this.link.ready && this.state && (this.running || this.owed)) {
      const now = performance.now();
      if (!this.owed && now < this.nextAt) {
        this.timer = setTimeout(() => this.pump(), this.nextAt - now);
        return;
      }
      if (!this.ask()) return;
      if (this.owed) this.owed -= 1;
      else this.nextAt = Math.max(this.nextAt, now - 500 / this.speed) + 1000 / this.speed;
    }
  }

  ask() {
    if (this.changing !== null) return false; // the driven world is about to change
    const worlds = this.driven;
    const asked = [...this.inFlight.values()].reduce((sum, { left }) => sum + left, 0);
    if (asked && asked + worlds.length > this.info.limits.steps_in_flight) return false;
    const furthest = Math.max(...worlds.map((world) => this.expected(world)));
    const most = this.info.limits.steps;
    if (furthest >= most) return this.stop(`A world ends after ${most} steps. Go back, or start anew.`);
    if (this.replay && furthest >= this.state.true_steps) {
      this.replay = false;
      return this.stop("The recording ends here. Now you drive.");
    }
    const own = this.follow[0] ?? (this.replay ? "episode" : this.nextAction(worlds[0]));
    const action = this.info.actions.dim ? own : null;
    for (const world of worlds) this.tracks[world].asked = this.replay ? null : action;
    const request = this.link.send({ type: "step", world: worlds.length > 1 ? "all" : worlds[0], action });
    if (request === null) return false;
    this.inFlight.set(request, { worlds, left: worlds.length });
    if (this.follow.length) this.followed();
    return true;
  }

  /** An action of the plan was taken; after the last one the world stands still, and the target with it. */
  followed() {
    this.targets[this.driven[0]] = this.follow.shift();
    this.aimed = true;
    if (!this.follow.length) this.playing = false;
  }

  /** The action that led to the newest frame of a world, or null. */
  lastAction(world) {
    const { frames, steps } = this.tracks[world];
    return (steps > 0 ? frames.get(steps) : this.truth.get(0))?.action ?? null;
  }

  nextAction(world) {
    const target = this.targets[world];
    const from = this.tracks[world].asked ?? this.lastAction(world);
    const { pointer, low, high } = this.info.actions;
    if (!from || !pointer || !this.eased) return target;
    const far = Math.max(...target.map((value, i) => Math.abs(value - from[i]) / (STRIDE * (high[i] - low[i]))));
    return far <= 1 ? target : target.map((value, i) => from[i] + (value - from[i]) / far);
  }

  stop(sentence) {
    this.pause();
    this.on.notify(sentence);
    return false;
  }

  // Messages of the server

  hello({ state, resumed }, asked) {
    this.inFlight.clear();
    this.filler.reset();
    this.opening = 0;
    this.changing = null;
    for (const track of this.tracks) track.asked = null;
    if (state && !this.state) this.on.resumed(state);
    this.apply(state);
    const ended = asked && !resumed;
    if (ended) this.on.notify("The earlier session has ended. This is a new one.");
    if (!state) this.on.lost(ended);
  }

  answered({ state, request }) {
    this.filler.passed(request);
    if (request === this.changing) this.changing = null;
    // A frame of a world that was replaced.
    if ((request ?? Infinity) < this.opening) return;
    this.opening = 0;
    this.apply(state, request ?? Infinity);
  }

  apply(state, request = Infinity) {
    const before = this.state;
    this.state = state;
    if (!state || !before || before.episode !== state.episode || before.start !== state.start) this.truth.clear();
    if (!state) this.tracks = [];
    else {
      if (this.tracks.length === 1 && state.worlds.length === 2) {
        this.tracks.push(this.tracks[0].copy());
        this.targets[1] = this.targets[0];
      }
      if (this.tracks.length === 2 && state.worlds.length === 1) {
        this.tracks = [this.tracks[this.keep ?? 0]];
        this.targets[0] = this.targets[this.keep ?? 0];
      }
      state.worlds.forEach(({ steps }, i) => {
        this.tracks[i] ??= new Track();
        if (request >= this.tracks[i].since) this.tracks[i].cut(steps);
      });
    }
    if (!this.forked && !state?.worlds[1]) this.drive = "0";
    if (this.view !== null && this.view >= this.newest) this.view = null;
    this.fill();
    this.pump();
    this.on.changed();
  }

  planned({ request, cancelled, actions }) {
    if (request !== this.search?.request) return;
    if (cancelled) this.search = null;
    else this.search.actions = actions;
    this.on.changed();
    if (!cancelled) this.on.planned();
  }

  refused({ message, request, fatal }) {
    if (request === this.search?.request) this.search = null;
    if (this.filler.failed(request)) return this.fill();
    if (fatal) return undefined; // the end of the connection says so
    const wasStep = this.inFlight.delete(request);
    if (request === this.changing) this.changing = null;
    this.pause();
    this.on.notify(message);
    if (wasStep) return undefined;
    this.filler.passed(request);
    if (request === this.opening) this.on.unopened();
    this.opening = 0;
    // The removed frames still exist on the server: an empty change of settings returns its state.
    return this.sample({});
  }

  frame(frame) {
    if (frame.kind === "plan") {
      if (frame.request === this.search?.request) this.search.frames.push(frame);
      return;
    }
    const asked = this.inFlight.get(frame.request);
    if (frame.kind === "step" && asked) {
      asked.left -= 1;
      if (!asked.left) this.inFlight.delete(frame.request);
      this.arrivals.push(performance.now());
    }
    const track = this.tracks[frame.world];
    if (frame.kind === "truth") this.truth.set(frame.step, frame);
    else if (track && (frame.request ?? Infinity) > track.since) {
      track.put(frame);
      if (frame.kind === "step") track.steps = frame.step;
      if (frame.step % 32 === 0) trim(this.tracks.map((one) => one.frames));
    }
    // The target stays at the last action until the user moves it.
    if (!this.aimed && this.info.actions.pointer && this.tracks.length) {
      const last = (world) => this.lastAction(this.tracks[world] ? world : 0);
      this.targets = this.targets.map((target, world) => last(world) ?? target);
    }
    const free = this.filler.got(frame) || this.filler.passed(frame.request);
    if (free || (frame.kind === "step" && this.comparing)) this.fill();
    this.pump();
    this.on.changed();
  }

  /** Requests frames that are shown or kept and not yet loaded. */
  fill() {
    if (!this.state || this.opening) return;
    const wants = this.tracks.map((track, world) => ({
      type: "show", world, frames: track.frames, first: this.earliest, last: track.steps, shown: this.shown(world),
    }));
    const ahead = Math.min(this.state.true_steps, this.newest + 16);
    // The true frame of step 0 is the last context frame; its action led to it.
    wants.push({ type: "truth", frames: this.truth, first: 0, last: this.comparing ? ahead : 0, shown: 0 });
    this.filler.fill(wants);
  }

  status(status) {
    if (status.state !== "open") {
      this.inFlight.clear();
      this.search = null;
      this.follow = [];
      this.pause();
    }
    this.on.status(status);
  }
}
