// The client.

import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";

import { readAnswer, type Cause, type Decision } from "./answers.js";
import { AVOID_MS, CallPlan, DEADLINE_MS_MAX, causeOf, deadlineHeader, type Met } from "./attempts.js";
import { HostConnections } from "./connections.js";
import { WrongRequest } from "./errors.js";
import { bodyOf, type Payment } from "./payments.js";
import { APART_MS, RECONCILE_DEADLINE_MS, ReconcileQueue, type End, type Waiting } from "./reconciling.js";
import { headersOf, requestText } from "./requests.js";
import { hostOrder, routeOf } from "./routing.js";
import { checked, requireToken, type CheckedSettings, type Hooks, type Operation, type Settings } from "./settings.js";
import { StandIn } from "./stand-in.js";

export const VERSION = "1.0.0";
const USER_AGENT = ["user-agent", `paywarden-client-typescript/${VERSION}`] as const;

export interface CallOptions {
  readonly deadline_ms?: number | undefined;
  readonly traceparent?: string | undefined;
}

/** One call. Times are in milliseconds of `performance.now`. */
interface Call {
  readonly operation: Operation;
  readonly payment: Payment;
  readonly body: string;
  readonly plan: CallPlan;
  readonly route: string | undefined;
  readonly traceparent: string | undefined;
  readonly beganMs: number;
  readonly deadlineMs: number;
}

/** Asks the service for decisions. One for the process. Throws WrongSettings. */
export class Client {
  private readonly settings: CheckedSettings;
  private readonly hosts: readonly HostConnections[];
  private readonly queue: ReconcileQueue;
  private readonly standIn: StandIn;
  private readonly avoidedUntil: number[];
  private isClosed = false;
  private shadows = 0;
  private reconciler: NodeJS.Timeout | undefined;

  constructor(
    settings: Settings,
    private readonly hooks: Hooks = {},
  ) {
    this.settings = checked(settings);
    this.hosts = this.settings.targets.map((target) => new HostConnections(target, this.settings));
    this.queue = new ReconcileQueue(this.settings.queueMax);
    this.standIn = new StandIn(this.settings.policy, this.settings.cardsMax);
    this.avoidedUntil = this.hosts.map(() => 0);
  }

  /** Resolves to the service's decision, or to a stand-in, by the deadline. Rejects with WrongRequest. */
  async score(payment: Payment, options: CallOptions = {}): Promise<Decision> {
    const call = this.begin("score", payment, options);
    try {
      return this.finish(call, await this.endOf(call));
    } catch (error) {
      if (error instanceof WrongRequest) {
        this.endWaiting(payment.payment_id, null, "refused");
        this.count(call, "refused");
      }
      throw error;
    }
  }

  /** Returns `own` at once, and asks the service in the background: `onShadow` gets both. Never throws. */
  shadow<Own>(payment: Payment, own: Own, options: CallOptions = {}): Own {
    if (this.isClosed || this.shadows >= this.settings.shadowMax) {
      const cause = this.isClosed ? "closed" : "busy";
      this.guarded(() => this.hooks.onShadow?.(own, null, cause));
      this.guarded(() => this.hooks.onCall?.("shadow", cause, 0, 0));
      return own;
    }
    this.shadows += 1;
    void this.runShadow(payment, own, options);
    return own;
  }

  /** How many stand-ins wait to be asked about again. */
  get waitingCount(): number {
    return this.queue.size;
  }

  /** Close the connections; `onReconciled` gets what waits. Calls from now on are stand-ins. */
  close(): void {
    this.isClosed = true;
    clearTimeout(this.reconciler);
    for (const { standIn } of this.queue.drain()) this.reconciled(standIn, null, "closed");
    for (const host of this.hosts) host.close();
  }

  private begin(operation: Operation, payment: Payment, options: CallOptions): Call {
    const beganMs = performance.now();
    const deadlineMs = options.deadline_ms ?? this.settings.deadlineMs;
    if (!(deadlineMs >= 1 && deadlineMs <= DEADLINE_MS_MAX)) {
      throw new WrongRequest(`wanted 1 to ${DEADLINE_MS_MAX}`, "deadline_ms");
    }
    const body = bodyOf(payment);
    const { routeKey, urls } = this.settings;
    const route = routeKey === undefined ? undefined : routeOf(routeKey, payment.card_id);
    const order = hostOrder(route ?? payment.card_id, urls);
    const avoided = order.filter((place) => (this.avoidedUntil[place] ?? 0) > beganMs);
    const plan = new CallPlan(order, avoided, this.queue.pinned(payment.payment_id));
    const { traceparent } = options;
    return { operation, payment, body, plan, route, traceparent, beganMs, deadlineMs: beganMs + deadlineMs };
  }

  /** Rejects with WrongRequest. */
  private async endOf(call: Call): Promise<Decision | Cause> {
    for (;;) {
      const met = await this.attempt(call);
      const code = typeof met === "string" ? met : met.status;
      if (call.operation !== "reconcile" && !this.isClosed) {
        const pauseMs = call.plan.retryPauseMs(code, call.deadlineMs - performance.now());
        if (pauseMs !== null) {
          if (pauseMs > 0) await sleep(pauseMs);
          continue;
        }
      }
      return typeof met === "string" ? causeOf(met) : readAnswer(call.payment.payment_id, met.status, met.body);
    }
  }

  private async attempt(call: Call): Promise<Met | { status: number; body: Buffer }> {
    if (this.isClosed) return "closed";
    const { plan } = call;
    const host = this.hosts[plan.host];
    if (host === undefined) throw new RangeError("a host that is not there");
    const place = host.takePlace(call.deadlineMs);
    if (place !== true && !(await place)) return "busy";
    try {
      let connection = plan.attempts > 1 ? undefined : host.takeKept();
      if (connection === undefined) {
        const made = await host.connect(call.deadlineMs);
        if (made === "refused") this.avoid(plan.host);
        if (typeof made === "string") return made;
        connection = made;
      }
      let request: string;
      try {
        request = this.request(call);
      } catch {
        // The caller's function gave no token.
        connection.close();
        return "failed";
      }
      const met = await connection.exchange(request, call.deadlineMs - performance.now());
      if (typeof met === "string") {
        connection.close();
        return met;
      }
      if (met.saysClose) this.avoid(plan.host);
      if (met.keeps) host.keep(connection);
      else connection.close();
      return met;
    } finally {
      host.givePlace();
    }
  }

  private request(call: Call): string {
    const { path, authority } = this.settings.targets[call.plan.host] ?? { path: "", authority: "" };
    let { token } = this.settings;
    if (typeof token === "function") token = requireToken(token());
    const deadline = deadlineHeader(call.deadlineMs - performance.now());
    const headers = headersOf(deadline, { token, route: call.route, traceparent: call.traceparent });
    call.plan.sent();
    return requestText(path, authority, [...headers, USER_AGENT], call.body);
  }

  private avoid(place: number): void {
    this.avoidedUntil[place] = performance.now() + AVOID_MS;
  }

  private finish(call: Call, end: Decision | Cause): Decision {
    if (typeof end !== "string") {
      this.endWaiting(call.payment.payment_id, end, "answered");
      this.count(call, "answered");
      return end;
    }
    const nowMs = performance.now();
    const decision = this.standIn.decide(call.payment, end, nowMs);
    if (!this.isClosed && this.queue.put(call.payment, decision, call.plan.sentTo, nowMs)) this.reconcileLater();
    else this.reconciled(decision, null, this.isClosed ? "closed" : "full");
    this.count(call, end);
    return decision;
  }

  private async runShadow(payment: Payment, own: unknown, options: CallOptions): Promise<void> {
    let call: Call | undefined;
    let end: Decision | Cause | "refused";
    try {
      call = this.begin("shadow", payment, options);
      end = await this.endOf(call);
    } catch (error) {
      end = error instanceof WrongRequest ? "refused" : "failed";
    }
    this.shadows -= 1;
    const isAnswered = typeof end !== "string";
    const decision = typeof end === "string" ? null : end;
    const cause = typeof end === "string" ? end : "";
    this.guarded(() => this.hooks.onShadow?.(own, decision, cause));
    if (call !== undefined) this.count(call, isAnswered ? "answered" : cause || "failed");
    else this.guarded(() => this.hooks.onCall?.("shadow", cause || "failed", 0, 0));
  }

  // Reconciliation

  private reconcileLater(pauseMs?: number): void {
    if (this.reconciler !== undefined || this.isClosed) return;
    const next = this.queue.next();
    if (next === undefined) return;
    const waitMs = pauseMs ?? Math.max(next.dueMs - performance.now(), 0);
    this.reconciler = setTimeout(() => void this.reconcile(), waitMs);
    // What waits does not keep the process alive.
    this.reconciler.unref();
  }

  private async reconcile(): Promise<void> {
    const waiting = this.queue.next();
    if (waiting !== undefined && waiting.dueMs <= performance.now()) {
      waiting.asked += 1;
      try {
        await this.askAgain(waiting);
      } finally {
        this.reconciler = undefined;
      }
      this.reconcileLater(APART_MS);
      return;
    }
    this.reconciler = undefined;
    this.reconcileLater();
  }

  private async askAgain(waiting: Waiting): Promise<void> {
    const { payment } = waiting;
    const call = this.begin("reconcile", payment, { deadline_ms: RECONCILE_DEADLINE_MS });
    let end: Decision | Cause;
    try {
      end = await this.endOf(call);
    } catch (error) {
      if (!(error instanceof WrongRequest)) throw error;
      this.endWaiting(payment.payment_id, null, "refused");
      this.count(call, "refused");
      return;
    }
    if (typeof end !== "string") {
      this.endWaiting(payment.payment_id, end, "answered");
      this.count(call, "answered");
      return;
    }
    const waits = this.isClosed || this.queue.failed(waiting, call.plan.sentTo, performance.now());
    if (!waits) this.reconciled(waiting.standIn, null, "expired");
    this.count(call, end);
  }

  private endWaiting(paymentId: string, decision: Decision | null, end: End): void {
    if (this.queue.size === 0) return;
    const waiting = this.queue.end(paymentId);
    if (waiting !== undefined) this.reconciled(waiting.standIn, decision, end);
  }

  // Hooks

  private reconciled(standIn: Decision, decision: Decision | null, end: End): void {
    this.guarded(() => this.hooks.onReconciled?.(standIn, decision, end));
  }

  private count(call: Call, outcome: "answered" | "refused" | Cause): void {
    const { onCall } = this.hooks;
    if (onCall === undefined) return;
    this.guarded(() => onCall(call.operation, outcome, (performance.now() - call.beganMs) / 1000, call.plan.attempts));
  }

  private guarded(hook: () => void): void {
    try {
      hook();
    } catch {
      // A hook changes no answer.
    }
  }
}
