// The session: what the file holds, unpacked, and its numbers for any part of the time.

/** What a stack can be measured by. */
const METRICS = {
  live: { title: "Live", about: "held at the end", isBytes: true },
  peak: { title: "At peak", about: "held when most was held", isBytes: true },
  growth: { title: "Growth", about: "held more at the end than at the start", isBytes: true },
  allocated: { title: "Allocated", about: "allocated, freed or not", isBytes: true },
  allocations: { title: "Allocations", about: "calls that allocated", isBytes: false },
  temporary: { title: "Temporary", about: "allocations freed before the thread's next one", isBytes: false },
  leaked: { title: "Leaked", about: "live bytes of stacks with a leak verdict; of a part of the time, by how much they grew in it", isBytes: true },
};

/** Places in a row's `usage`. */
const USAGE = { allocations: 0, allocated: 1, blocks: 2, live: 3, peak: 4, temporary: 5, leaked: 6 };

/** Reads the data out of the page. */
async function unpack() {
  const packed = Uint8Array.from(atob(byId("data").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Session(await new Response(stream).json());
}

class Session {
  constructor(page) {
    Object.assign(this, { report: page.report, page, rows: page.rows, ends: page.ends });
    const text = (index) => (index < 0 ? null : page.texts[index]);
    const { name, module, file } = page.functions;
    this.functions = name.map((_, index) => {
      const [known, path] = [text(name[index]), text(module[index])];
      return {
        name: known ?? `?? in ${baseName(path ?? "?")}`,
        module: path,
        file: text(file[index]),
        // Nodes that stand for no function: stacks that were cut, stacks without a row.
        isNote: path === null,
      };
    });
    this.duration = page.report.capture.duration_ns;
    this.unpackNodes(page);
    this.unpackFunctions();
    this.unpackChanges();
  }

  unpackNodes({ nodes, calls }) {
    const size = nodes.parent.length;
    this.parent = new Int32Array(size);
    this.call = Uint32Array.from(nodes.call);
    this.functionOf = new Uint32Array(size);
    for (let node = 0; node < size; node += 1) {
      this.parent[node] = nodes.parent[node] === 0 ? -1 : node - nodes.parent[node];
      this.functionOf[node] = calls.function[this.call[node]];
    }
  }

  /** The functions of each row, each once, the allocating one first: `functionsIn` gives them. */
  unpackFunctions() {
    this.functionsStart = new Uint32Array(this.rows.length + 1);
    const all = [];
    const seenIn = new Int32Array(this.functions.length).fill(-1);
    this.rows.forEach(({ node }, row) => {
      for (; node >= 0; node = this.parent[node]) {
        const called = this.functionOf[node];
        if (seenIn[called] !== row) all.push(called);
        seenIn[called] = row;
      }
      this.functionsStart[row + 1] = all.length;
    });
    this.functionsOfRows = Uint32Array.from(all);
  }

  functionsIn(row) {
    return this.functionsOfRows.subarray(this.functionsStart[row], this.functionsStart[row + 1]);
  }

  /** Changes of all rows, row by row, and what is held of each memory after each step. */
  unpackChanges() {
    const size = this.rows.reduce((sum, row) => sum + row.changes.length / 5, 0);
    this.changes = {
      start: new Uint32Array(this.rows.length + 1),
      step: new Uint16Array(size),
      growth: new Float64Array(size),
      allocations: new Float64Array(size),
      allocated: new Float64Array(size),
      temporary: new Float64Array(size),
    };
    this.held = { heap: new Float64Array(this.ends.length), mapped: new Float64Array(this.ends.length) };
    const { start, step, growth, allocations, allocated, temporary } = this.changes;
    let at = 0;
    this.rows.forEach((row, index) => {
      row.memory = row.mapped ? "mapped" : "heap";
      const held = this.held[row.memory];
      let now = 0;
      for (let i = 0; i < row.changes.length; i += 5, at += 1) {
        now += row.changes[i];
        step[at] = now;
        growth[at] = row.changes[i + 1];
        allocations[at] = row.changes[i + 2];
        allocated[at] = row.changes[i + 3];
        temporary[at] = row.changes[i + 4];
        held[now] += growth[at];
      }
      row.changes = null;
      start[index + 1] = at;
    });
    for (const held of Object.values(this.held)) {
      for (let i = 1; i < held.length; i += 1) held[i] += held[i - 1];
    }
  }

  /** The start of a step; `stepAt` is the step that holds a moment. */
  startOf(step) {
    return step === 0 ? 0 : this.ends[step - 1];
  }

  stepAt(ns) {
    const found = this.ends.findIndex((end) => ns < end);
    return found < 0 ? this.ends.length - 1 : found;
  }

  /**
   * What every row did in a range of steps `{ from, to }`, both included; null for the session.
   *
   * Of the whole session these are the report's own numbers. Of a part, the peak is that of the
   * steps' ends.
   */
  measure(range) {
    return range === null ? this.measureAll() : this.measureRange(range);
  }

  measureAll() {
    const of = (key) => Float64Array.from(this.rows, (row) => row.usage[USAGE[key]]);
    const live = of("live");
    return {
      live,
      peak: of("peak"),
      growth: live,
      allocated: of("allocated"),
      allocations: of("allocations"),
      temporary: of("temporary"),
      leaked: of("leaked"),
    };
  }

  measureRange({ from, to }) {
    const size = this.rows.length;
    const make = () => new Float64Array(size);
    const measured = { live: make(), peak: make(), growth: make(), allocated: make(), allocations: make(), temporary: make() };
    const highest = { heap: this.highestStep("heap", from, to), mapped: this.highestStep("mapped", from, to) };
    const { start, step, growth, allocations, allocated, temporary } = this.changes;
    for (let row = 0; row < size; row += 1) {
      const peakStep = highest[this.rows[row].memory];
      for (let i = start[row]; i < start[row + 1] && step[i] <= to; i += 1) {
        measured.live[row] += growth[i];
        if (step[i] <= peakStep) measured.peak[row] += growth[i];
        if (step[i] < from) continue;
        measured.growth[row] += growth[i];
        measured.allocations[row] += allocations[i];
        measured.allocated[row] += allocated[i];
        measured.temporary[row] += temporary[i];
      }
    }
    measured.leaked = measured.growth.map((grown, row) => Math.min(Math.max(grown, 0), this.rows[row].usage[USAGE.leaked]));
    return measured;
  }

  /** What each thread did in a range of steps; of the whole session, the report's own numbers. */
  measureThreads(range) {
    const { threads } = this.report;
    if (range === null) {
      return threads.map((thread) => ({ thread, live: thread.live_bytes, peak: thread.peak_bytes, growth: thread.live_bytes, allocated: thread.allocated_bytes, allocations: thread.allocations, temporary: thread.temporary_allocations }));
    }
    const peakStep = this.highestStep("heap", range.from, range.to);
    return threads.map((thread, index) => {
      const measured = { thread, live: 0, peak: 0, growth: 0, allocated: 0, allocations: 0, temporary: 0 };
      const changes = this.page.threads[index];
      let step = 0;
      for (let i = 0; i < changes.length; i += 5) {
        step += changes[i];
        if (step > range.to) break;
        measured.live += changes[i + 1];
        if (step <= peakStep) measured.peak += changes[i + 1];
        if (step < range.from) continue;
        measured.growth += changes[i + 1];
        measured.allocations += changes[i + 2];
        measured.allocated += changes[i + 3];
        measured.temporary += changes[i + 4];
      }
      return measured;
    });
  }

  highestStep(memory, from, to) {
    let best = from;
    for (let step = from; step <= to; step += 1) {
      if (this.held[memory][step] > this.held[memory][best]) best = step;
    }
    return best;
  }

  /** Of each function, whether its name or its files hold the text; null if nothing is searched. */
  matches(search) {
    const wanted = search.trim().toLowerCase();
    const holds = (text) => text !== null && text.toLowerCase().includes(wanted);
    return wanted === "" ? null : this.functions.map(({ name, module, file }) => holds(name) || holds(module) || holds(file));
  }

  /** The calls of a row, from the allocating function outwards. */
  frames(row) {
    const { calls } = this.page;
    const frames = [];
    for (let node = this.rows[row].node; node >= 0; node = this.parent[node]) {
      const call = this.call[node];
      const known = this.functions[calls.function[call]];
      frames.push({ ...known, line: calls.line[call] || null, inlined: calls.inlined[call] === 1 });
    }
    return frames;
  }
}

function baseName(path) {
  return path.slice(path.lastIndexOf("/") + 1) || path;
}

/** `server.rs:110`, or the file of the code where the source is not known. */
function placeOf({ file, line, module }) {
  if (file) return baseName(file) + (line ? `:${line}` : "");
  return module ? baseName(module) : "";
}

