// Trees of functions: what the flame graph draws.
//
// A tree is made once for each direction; the numbers of its nodes are sums over the rows and are
// made anew for each range, metric and memory. Lines of one function are one node.

class Tree {
  /** `paths` gives the functions of a row, from the root of the tree to the leaf. */
  constructor(session, pathOf) {
    this.parent = [];
    this.functionOf = [];
    this.leaf = new Int32Array(session.rows.length).fill(-1);
    const known = new Map();
    const functions = session.functions.length;
    session.rows.forEach((_, row) => {
      let node = -1;
      for (const called of pathOf(row)) {
        const key = (node + 1) * functions + called;
        let inner = known.get(key);
        if (inner === undefined) {
          inner = this.parent.length;
          this.parent.push(node);
          this.functionOf.push(called);
          known.set(key, inner);
        }
        node = inner;
      }
      this.leaf[row] = node;
    });
    this.size = this.parent.length;
  }

  /** From the thread's root to the allocating function. */
  static byCallers(session) {
    return new Tree(session, (row) => functionPath(session, row).reverse());
  }

  /** From the allocating function to the thread's root. */
  static byAllocators(session) {
    return new Tree(session, (row) => functionPath(session, row));
  }

  /**
   * Weighs the nodes by what their rows weigh. `children` are those that weigh something, heaviest
   * first; `roots` likewise. What is negative, such as a growth, is left out.
   */
  weigh(values, isShown) {
    const weight = new Float64Array(this.size);
    let total = 0;
    this.leaf.forEach((node, row) => {
      if (node < 0 || values[row] <= 0 || !isShown(row)) return;
      weight[node] += values[row];
      total += values[row];
    });
    // A node comes after its caller.
    for (let node = this.size - 1; node >= 0; node -= 1) {
      if (this.parent[node] >= 0) weight[this.parent[node]] += weight[node];
    }
    const children = new Map();
    for (let node = 0; node < this.size; node += 1) {
      if (weight[node] === 0) continue;
      const siblings = children.get(this.parent[node]);
      if (siblings) siblings.push(node);
      else children.set(this.parent[node], [node]);
    }
    for (const siblings of children.values()) siblings.sort((a, b) => weight[b] - weight[a]);
    return { tree: this, weight, total, children };
  }

  /** The nodes from the root down to `node`. */
  line(node) {
    const line = [];
    for (; node >= 0; node = this.parent[node]) line.push(node);
    return line.reverse();
  }
}

/** The functions of a row, from the allocating one outwards. */
function functionPath(session, row) {
  const path = [];
  for (let node = session.rows[row].node; node >= 0; node = session.parent[node]) {
    path.push(session.functionOf[node]);
  }
  return path;
}

