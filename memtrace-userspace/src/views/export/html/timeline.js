// The timeline: memory and allocation rate over the session, and the range that is chosen on it.

const LANES = { notes: 20, memory: 150, gap: 14, rate: 44, axis: 22, left: 82, right: 12 };

const SERIES = [
  { key: "live_bytes", title: "live heap", className: "live" },
  { key: "mapped_bytes", title: "mapped", className: "mapped" },
  { key: "resident_bytes", title: "resident (RSS)", className: "resident" },
];

class Timeline {
  constructor(session, state, tip) {
    Object.assign(this, { session, state, tip });
    // The last point may stand where the one before ends.
    this.points = session.report.timeline;
    this.series = SERIES.filter(({ key }) => key === "live_bytes" || this.points.some((point) => point[key] > 0));
    this.hidden = new Set();
    this.box = byId("timeline");
    this.rates = ratesOf(this.points);
    this.legend();
    this.draw();
    new ResizeObserver(() => this.box.clientWidth !== this.width && this.draw()).observe(this.box);
    state.onChange(() => this.showRange());
  }

  legend() {
    byId("timeline-legend").replaceChildren(
      ...this.series.map(({ key, title, className }) =>
        element(
          "button",
          {
            type: "button",
            class: `series ${className}`,
            "aria-pressed": "true",
            title: `Show or hide ${title}`,
            click: (event) => {
              if (!this.hidden.delete(key)) this.hidden.add(key);
              event.currentTarget.setAttribute("aria-pressed", String(!this.hidden.has(key)));
              this.draw();
            },
          },
          title,
        ),
      ),
      element("span", { class: "series rate" }, "allocation rate"),
    );
  }

  draw() {
    const { notes, memory, gap, rate, axis, left, right } = LANES;
    this.width = this.box.clientWidth;
    const plot = Math.max(1, this.width - left - right);
    const span = Math.max(1, this.session.duration);
    this.x = (ns) => left + (plot * Math.min(ns, span)) / span;
    this.time = (x) => (span * Math.min(Math.max(x - left, 0), plot)) / plot;
    const shown = this.series.filter(({ key }) => !this.hidden.has(key));
    const highest = Math.max(1, ...shown.map(({ key }) => maximum(this.points, (point) => Math.max(point[key], key === "live_bytes" ? point.peak_live_bytes : 0))));
    const top = roundUp(highest);
    const bottom = notes + memory;
    const y = (value) => bottom - (memory * value) / top;
    const fastest = roundUp(Math.max(1, maximum(this.rates, (value) => value)));
    const floor = bottom + gap + rate;
    const rateY = (value) => floor - (rate * value) / fastest;

    this.svg = drawing("svg", {
      width: this.width,
      height: floor + axis,
      tabindex: "0",
      role: "img",
      "aria-label": "Memory over time. Arrow keys move a chosen range, with Shift its end; Escape shows the whole session.",
      keydown: (event) => this.key(event),
    });
    const grid = [0, top / 2, top].map((value) => [
      drawing("line", { class: "grid", x1: left, x2: left + plot, y1: y(value), y2: y(value) }),
      drawing("text", { class: "label", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, bytes(value)),
    ]);
    const rateLabels = [
      drawing("line", { class: "grid", x1: left, x2: left + plot, y1: floor, y2: floor }),
      drawing("text", { class: "label", x: left - 8, y: rateY(fastest) + 8, "text-anchor": "end" }, `${bytes(fastest)}/s`),
    ];
    const ticks = ticksOf(span, plot).map((ns) =>
      drawing("text", { class: "label", x: this.x(ns), y: floor + 16, "text-anchor": "middle" }, tickLabel(ns)),
    );
    const lines = shown.map(({ key, className }) => {
      const line = this.steps((point) => y(point[key]), y(0));
      const area = className === "live" && drawing("path", { class: "area live", d: `${line}V${y(0)}H${left}Z` });
      return [area, drawing("path", { class: `line ${className}`, d: line })];
    });
    const rates = this.steps((_, index) => rateY(this.rates[index]), floor);
    this.selection = drawing("g", { class: "selection" });
    this.cursor = drawing("line", { class: "cursor", y1: notes, y2: floor, x1: -9, x2: -9 });
    const surface = drawing("rect", {
      class: "surface",
      x: left,
      y: notes,
      width: plot,
      height: floor - notes,
      pointerdown: (event) => this.grab(event),
      pointermove: (event) => this.point(event),
      pointerleave: () => this.leave(),
    });
    this.svg.append(
      ...grid.flat(),
      ...rateLabels,
      ...ticks,
      ...lines.flat().filter(Boolean),
      drawing("path", { class: "area rate", d: `${rates}V${floor}H${left}Z` }),
      this.cursor,
      this.selection,
      surface,
      ...this.notes(plot, bottom),
    );
    this.box.replaceChildren(this.svg);
    this.showRange();
  }

  /** A line of steps; one of the columns that are too narrow to be told apart is enough. */
  steps(heightOf, first) {
    let line = `M${LANES.left},${first}`;
    this.points.forEach((point, index) => {
      line += `V${heightOf(point, index).toFixed(1)}H${this.x(point.time_ns).toFixed(1)}`;
    });
    return line;
  }

  /** Spikes and marks, with their words in a lane of their own. */
  notes(plot, bottom) {
    const { notes, left } = LANES;
    const made = [];
    const say = (x, next, text, className, title, choose) => {
      const isRoom = x + text.length * 6.6 + 12 <= next;
      made.push(
        drawing(
          "g",
          { class: `note ${className}`, click: choose ?? false },
          drawing("title", null, title),
          drawing("line", { x1: x, x2: x, y1: 8, y2: bottom }),
          drawing("circle", { cx: x, cy: 8, r: 3.5 }),
          isRoom && drawing("text", { x: x + 7, y: 12 }, text),
        ),
      );
    };
    const all = [
      ...this.session.report.spikes.map((spike) => ({ at: spike.start_ns, spike })),
      ...(this.session.report.marks ?? []).map((mark) => ({ at: mark.time_ns, mark })),
    ].sort((a, b) => a.at - b.at);
    all.forEach(({ at, spike, mark }, index) => {
      const next = index + 1 < all.length ? this.x(all[index + 1].at) : left + plot;
      if (mark) {
        say(this.x(at), next, mark.text, "mark", `${mark.text}, at ${duration(at)}`);
      } else {
        say(this.x(at), next, `+${bytes(spike.height_bytes)}`, `spike ${spike.severity}`, spikeTitle(spike), () =>
          this.state.set(rangeOfSpike(spike, this.session)),
        );
      }
    });
    return made;
  }

  showRange() {
    const range = chosenRange(this.state.values, this.session);
    const { notes, memory, gap, rate, left, right } = LANES;
    const height = memory + gap + rate;
    this.selection.replaceChildren();
    if (range) {
      const [from, to] = [this.x(this.session.startOf(range.from)), this.x(this.session.ends[range.to])];
      const shade = (x, width) => drawing("rect", { class: "shade", x, y: notes, width: Math.max(0, width), height });
      const edge = (x) => drawing("line", { class: "edge", x1: x, x2: x, y1: notes, y2: notes + height });
      this.selection.append(shade(left, from - left), shade(to, this.width - right - to), edge(from), edge(to));
    }
    const label = byId("range-label");
    label.textContent = range
      ? `${preciseTime(this.session.startOf(range.from))} – ${preciseTime(this.session.ends[range.to])}`
      : "whole session";
    byId("range-reset").hidden = range === null;
    byId("range-hint").hidden = range !== null;
  }

  xOf(event) {
    return event.clientX - this.svg.getBoundingClientRect().left;
  }

  /** Begins a new range, or moves the edge of the old one that was taken hold of. */
  grab(event) {
    if (event.button !== 0) return;
    event.currentTarget.setPointerCapture(event.pointerId);
    const x = this.xOf(event);
    const range = chosenRange(this.state.values, this.session);
    this.anchor = x;
    this.isDrag = false;
    if (range) {
      const [from, to] = [this.x(this.session.startOf(range.from)), this.x(this.session.ends[range.to])];
      if (Math.abs(x - from) < 6) this.anchor = to;
      else if (Math.abs(x - to) < 6) this.anchor = from;
    }
    const surface = event.currentTarget;
    const end = () => {
      surface.removeEventListener("pointerup", end);
      surface.removeEventListener("pointercancel", end);
      // A click without a drag shows everything again.
      if (!this.isDrag) this.state.set({ from: null, to: null });
      this.anchor = undefined;
    };
    surface.addEventListener("pointerup", end);
    surface.addEventListener("pointercancel", end);
  }

  point(event) {
    const x = this.xOf(event);
    if (this.anchor !== undefined) {
      if (Math.abs(x - this.anchor) > 3) this.isDrag = true;
      if (this.isDrag) this.choose(this.session.stepAt(this.time(Math.min(x, this.anchor))), this.session.stepAt(this.time(Math.max(x, this.anchor)) - 1));
    }
    const ns = this.time(x);
    const found = this.points.findIndex((point) => ns < point.time_ns);
    const index = found < 0 ? this.points.length - 1 : found;
    const point = this.points[index];
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.tip.show(
      event,
      element("b", null, preciseTime(ns)),
      ...this.series.map(({ key, title, className }) => tipLine(title, bytes(point[key]), className)),
      tipLine("allocating", `${bytes(this.rates[index])}/s`, "rate"),
    );
  }

  leave() {
    this.cursor.setAttribute("x1", -9);
    this.cursor.setAttribute("x2", -9);
    this.tip.hide();
  }

  choose(first, last) {
    const steps = this.session.ends.length;
    const from = Math.min(Math.max(first, 0), steps - 1);
    const to = Math.min(Math.max(last, from), steps - 1);
    this.state.set({ from: this.session.startOf(from) / 1e9, to: this.session.ends[to] / 1e9 });
  }

  key(event) {
    const range = chosenRange(this.state.values, this.session);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      const { from, to } = range ?? { from: 0, to: Math.floor(this.session.ends.length / 4) };
      const last = this.session.ends.length - 1;
      if (event.shiftKey) this.choose(from, to + step);
      else if (from + step >= 0 && to + step <= last) this.choose(from + step, to + step);
    } else if (event.key === "Escape") {
      this.state.set({ from: null, to: null });
    }
  }
}

/** Bytes that were allocated in each second of a step; a last step that was cut short has the rate of both last ones. */
function ratesOf(points) {
  const length = (index) => points[index].time_ns - (index === 0 ? 0 : points[index - 1].time_ns);
  const rate = (first, last) => {
    let [allocated, time] = [0, 0];
    for (let index = first; index <= last; index += 1) [allocated, time] = [allocated + points[index].allocated_bytes, time + length(index)];
    return time > 0 ? (allocated * 1e9) / time : 0;
  };
  const last = points.length - 1;
  const isShort = last > 0 && length(last) < length(last - 1) / 2;
  return points.map((_, index) => (isShort && index >= last - 1 ? rate(last - 1, last) : rate(index, index)));
}

function maximum(list, of) {
  return list.reduce((most, item) => Math.max(most, of(item)), 0);
}

/** The next number of bytes that reads well: 1, 2, 4, … 512 of a unit. */
function roundUp(value) {
  let round = 1;
  while (round < value) round *= 2;
  // Of two halves, the one that wastes no room.
  return round * 0.75 >= value && round >= 4 ? round * 0.75 : round;
}

function ticksOf(span, plot) {
  const wanted = Math.max(2, Math.floor(plot / 110));
  const seconds = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800];
  const step = (seconds.find((each) => span / (each * 1e9) <= wanted) ?? span / wanted / 1e9) * 1e9;
  const ticks = [];
  for (let ns = 0; ns <= span && ticks.length <= wanted; ns += step) ticks.push(ns);
  return ticks;
}

function tickLabel(ns) {
  if (ns === 0) return "0";
  if (ns < 1e9) return `${Math.round(ns / 1e6)} ms`;
  return ns < 60e9 ? `${Number((ns / 1e9).toFixed(1))} s` : duration(ns);
}

/** A moment, to a hundredth of a second where that means something. */
function preciseTime(ns) {
  return ns < 60e9 ? `${(ns / 1e9).toFixed(2)} s` : duration(ns);
}

function spikeTitle(spike) {
  const maker = spike.contributors[0]?.function ?? "unknown";
  const fate = spike.returned_ns === null ? "not given back" : `given back at ${duration(spike.returned_ns)}`;
  return `${spike.severity} spike: +${bytes(spike.height_bytes)} ${memoryOf(spike)} from ${duration(spike.start_ns)} to ${duration(spike.end_ns)}, most of it by ${maker}, ${fate}`;
}

/** Whose memory grew. */
function memoryOf(spike) {
  return spike.operation === null ? spike.memory : `${spike.memory} of ${spike.operation}`;
}

/** What to choose to see who made a spike. */
function rangeOfSpike(spike, session) {
  const [first, last] = [session.stepAt(spike.start_ns), session.stepAt(spike.end_ns)];
  return { from: session.startOf(first) / 1e9, to: session.ends[last] / 1e9, metric: "growth", memory: spike.memory };
}

