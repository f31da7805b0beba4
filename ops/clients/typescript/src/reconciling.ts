// Stand-ins that wait to be asked about again (rules 25 to 27). Pure: the caller brings the time.

import type { Decision } from "./answers.js";
import type { Payment } from "./payments.js";

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30_000;
const GIVE_UP_MS = 540_000;
/** Of a payment that is asked about again. */
export const RECONCILE_DEADLINE_MS = 1000;
/** Between two of them: at most 50 a second. */
export const APART_MS = 20;

/** How a stand-in ended. */
export type End = "answered" | "refused" | "expired" | "full" | "closed";

/** Returns when to ask next, in milliseconds since the stand-in; null to give up. */
export function nextDueMs(asked: number, sinceMs: number): number | null {
  const dueMs = sinceMs + Math.min(FIRST_PAUSE_MS * 2 ** Math.min(asked, 10), LONGEST_PAUSE_MS);
  return dueMs > GIVE_UP_MS ? null : dueMs;
}

/** A stand-in that waits. `pinned` is the place of the host that the payment may have been sent to, or null. */
export interface Waiting {
  readonly payment: Payment;
  standIn: Decision;
  pinned: number | null;
  readonly begunMs: number;
  asked: number;
  dueMs: number;
}

/** The waiting stand-ins by payment id. */
export class ReconcileQueue {
  private readonly waiting = new Map<string, Waiting>();

  constructor(private readonly waitingMax: number) {}

  get size(): number {
    return this.waiting.size;
  }

  pinned(paymentId: string): number | null {
    return this.waiting.get(paymentId)?.pinned ?? null;
  }

  /** Let a stand-in wait, in the place of an earlier one of the payment. Returns false if there is no room. */
  put(payment: Payment, standIn: Decision, pinned: number | null, nowMs: number): boolean {
    const before = this.waiting.get(payment.payment_id);
    if (before !== undefined) {
      before.standIn = standIn;
      before.pinned = pinned ?? before.pinned;
      return true;
    }
    if (this.waiting.size >= this.waitingMax) return false;
    const dueMs = nowMs + FIRST_PAUSE_MS;
    this.waiting.set(payment.payment_id, { payment, standIn, pinned, begunMs: nowMs, asked: 0, dueMs });
    return true;
  }

  /** Take a payment out of the queue. */
  end(paymentId: string): Waiting | undefined {
    const ended = this.waiting.get(paymentId);
    this.waiting.delete(paymentId);
    return ended;
  }

  /** Returns the payment that is due next, which stays in the queue. It looks at each, 50 times a second at most. */
  next(): Waiting | undefined {
    let next: Waiting | undefined;
    for (const one of this.waiting.values()) if (next === undefined || one.dueMs < next.dueMs) next = one;
    return next;
  }

  /** Plan to ask again. Returns false if it is too late for that: the payment is out of the queue. */
  failed(waiting: Waiting, sentTo: number | null, nowMs: number): boolean {
    waiting.pinned ??= sentTo;
    const dueMs = nextDueMs(waiting.asked, nowMs - waiting.begunMs);
    if (dueMs !== null) {
      waiting.dueMs = waiting.begunMs + dueMs;
      return true;
    }
    this.waiting.delete(waiting.payment.payment_id);
    return false;
  }

  /** Returns what waits, and empties the queue. */
  drain(): Waiting[] {
    const left = [...this.waiting.values()];
    this.waiting.clear();
    return left;
  }
}
