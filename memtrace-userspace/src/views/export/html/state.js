// What the reader has chosen. It is in the address, so that a link shows the same.

const DEFAULTS = { metric: "live", memory: "heap", from: null, to: null, search: "", tab: "functions", tree: "callers" };

const CHOICES = {
  metric: Object.keys(METRICS),
  memory: ["heap", "mapped"],
  tab: ["functions", "stacks", "leaks", "spikes", "operations", "threads", "processes", "blocks", "session"],
  tree: ["callers", "allocators"],
};

class State {
  constructor() {
    this.listeners = [];
    this.read();
    window.addEventListener("hashchange", () => {
      const before = JSON.stringify(this.values);
      this.read();
      if (JSON.stringify(this.values) !== before) this.tell();
    });
  }

  /** Takes over the address; whatever means nothing there is as if it were not given. */
  read() {
    this.values = { ...DEFAULTS };
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const isChoice = Object.hasOwn(CHOICES, name) && CHOICES[name].includes(value);
      if (isChoice || name === "search") this.values[name] = value;
      if (name === "from" || name === "to") {
        const seconds = Number.parseFloat(value);
        if (seconds >= 0) this.values[name] = seconds;
      }
    }
  }

  /** Changes some of it, and tells everybody. */
  set(changes) {
    Object.assign(this.values, changes);
    const parts = Object.entries(this.values).filter(([name, value]) => value !== DEFAULTS[name]);
    const address = new URLSearchParams(parts.map(([name, value]) => [name, String(value)])).toString();
    history.replaceState(null, "", address ? `#${address}` : location.pathname + location.search);
    this.tell();
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  tell() {
    this.listeners.forEach((listener) => listener(this.values));
  }
}

/** The steps of the chosen range, or null for the whole session. */
function chosenRange({ from, to }, session) {
  if (from === null && to === null) return null;
  // Seconds are not exact to the nanosecond.
  const first = session.stepAt((from ?? 0) * 1e9 + 1e3);
  // A range ends where a step ends, and that step is its last one.
  const end = (to ?? Infinity) * 1e9 - 1e3;
  const last = Math.max(first, session.stepAt(end));
  return { from: first, to: last };
}

