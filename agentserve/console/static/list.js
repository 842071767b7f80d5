// A list of any length in a window that scrolls: only the rows that can be seen, and a few around them, are asked for
// and drawn; empty bodies above and below stand for the rest.
// Rule: the number of elements does not depend on the number of rows. A row that stays keeps its element and its focus.

import { keyed } from "./page.js";

const AROUND = 12;

export class LongList {
  /** `load(offset, limit)` gives `{ data, matching }`; `draw(item, row)` makes a row, or renews the one it is given. */
  constructor(scroller, body, { rowPx, keyOf, load, draw }) {
    Object.assign(this, { scroller, body, rowPx, keyOf, load, draw, busy: false, again: false });
    [this.above, this.below] = scroller.querySelectorAll("tbody.space td");
    scroller.addEventListener("scroll", () => this.renew().catch(() => {}), { passive: true });
  }

  top() {
    this.scroller.scrollTop = 0;
  }

  /** Ask for what is in sight and draw it; what is asked meanwhile is done once at the end. */
  async renew() {
    if (this.busy) {
      this.again = true;
      return this.last;
    }
    this.busy = true;
    try {
      do {
        this.again = false;
        const offset = Math.max(0, Math.floor(this.scroller.scrollTop / this.rowPx) - AROUND);
        const limit = Math.ceil(innerHeight / this.rowPx) + 2 * AROUND;
        this.show(offset, (this.last = await this.load(offset, limit)));
      } while (this.again);
      return this.last;
    } finally {
      this.busy = false;
    }
  }

  show(offset, { data, matching }) {
    const before = Math.min(offset, matching);
    const after = Math.max(0, matching - before - data.length);
    const scrolled = this.scroller.scrollTop;
    keyed(this.body, data.map((item, i) => ({ item, at: before + i })), ({ item }) => this.keyOf(item), ({ item, at }, old) => {
      const row = this.draw(item, old);
      row.setAttribute("aria-rowindex", at + 2); // the heading is the first
      return row;
    });
    this.above.style.height = `${before * this.rowPx}px`;
    this.below.style.height = `${after * this.rowPx}px`;
    this.above.parentElement.parentElement.hidden = !before;
    this.below.parentElement.parentElement.hidden = !after;
    this.scroller.querySelector("table").setAttribute("aria-rowcount", matching + 1);
    this.scroller.scrollTop = scrolled; // browsers that anchor to a row would drift
  }
}
