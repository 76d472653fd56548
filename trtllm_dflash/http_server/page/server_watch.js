// Watches whether the server is there, and which models it has.

import { checkReady, fetchModels, Refusal } from "./api.js";

const CALM = 15_000; // ms between two looks while all is well
const EAGER = 2_000; // and while it is not

/**
 * Looks at the server now and then, and says so when its state changes.
 *
 * The states: "ready", "locked" (it wants an API key), "busy" (it takes no requests yet, or no
 * more), "gone".
 */
export class ServerWatch {
  constructor(onChange) {
    this.state = null;
    this.models = [];
    this.onChange = onChange;
    this.timer = null;
    this.isLooking = false;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.look();
    });
    addEventListener("online", () => this.look());
  }

  /** Look now; also after a failure, or a new API key. */
  async look() {
    if (this.isLooking) return;
    this.isLooking = true;
    clearTimeout(this.timer);
    const before = this.state;
    try {
      await checkReady();
      // The models are asked for again after each change: another server may have come back.
      if (before !== "ready" || !this.models.length) this.models = await fetchModels();
      this.state = "ready";
    } catch (error) {
      this.state = stateAfter(error);
    }
    this.isLooking = false;
    if (this.state !== before) this.onChange(this.state, before);
    this.#lookAgain();
  }

  /** Forget the models, so that they are asked for with another key. */
  forget() {
    this.models = [];
    this.state = null;
  }

  #lookAgain() {
    if (document.hidden) return; // the page looks when it is seen again
    this.timer = setTimeout(() => this.look(), this.state === "ready" ? CALM : EAGER);
  }
}

function stateAfter(error) {
  if (!(error instanceof Refusal)) return "gone";
  return error.status === 401 || error.status === 403 ? "locked" : "busy";
}
