// Which host a call asks, and whether it asks once more (rules 9 and 11 to 15). Pure: the caller brings times and what
// happened.

import type { Cause } from "./answers.js";

export const RETRY_PAUSE_MS = 5;
export const RETRY_LEFT_MS_MIN = 5;
export const ATTEMPTS_MAX = 2;
export const AVOID_MS = 1000;
export const DEADLINE_MS_MAX = 600_000;

/** What an attempt met, besides a status: no connection, a broken one, or what is a cause already. */
export type Met = "refused" | Exclude<Cause, "unreachable">;

/** Returns the value of `x-deadline-ms`. */
export function deadlineHeader(leftMs: number): number {
  return Math.min(Math.max(Math.floor(leftMs + 0.5), 1), DEADLINE_MS_MAX);
}

/** Returns the cause of a stand-in by what the last attempt met, other than a status. */
export function causeOf(met: Met): Cause {
  return met === "refused" ? "unreachable" : met;
}

/** The attempts of one call. `host` is the place of the host to ask now. */
export class CallPlan {
  attempts = 1;
  host: number;
  /** Where the request was sent: the place of a host, or null. */
  sentTo: number | null;

  /** `pinned` is the host that this payment was sent to before. */
  constructor(
    private readonly order: readonly number[],
    avoided: readonly number[],
    pinned: number | null,
  ) {
    this.sentTo = pinned;
    this.host = pinned ?? order.find((place) => !avoided.includes(place)) ?? order[0] ?? 0;
  }

  /** Note that bytes of the request may have reached the host. */
  sent(): void {
    this.sentTo = this.host;
  }

  /** Returns the pause before a second attempt at `host`, or null if there is none. */
  retryPauseMs(met: Met | number, leftMs: number): number | null {
    if (this.attempts >= ATTEMPTS_MAX || !(met === "refused" || met === "broken" || met === 503)) return null;
    let host = this.host;
    let pauseMs = met === "broken" ? 0 : RETRY_PAUSE_MS;
    if (met === "refused" && this.sentTo === null && this.order.length > 1) {
      host = this.order[(this.order.indexOf(host) + 1) % this.order.length] ?? host;
      pauseMs = 0;
    }
    if (leftMs - pauseMs < RETRY_LEFT_MS_MIN) return null;
    this.attempts += 1;
    this.host = host;
    return pauseMs;
  }
}
