// Connections to one host: kept, bounded, and each with a deadline (rules 16 to 21).

import { lookup } from "node:dns/promises";
import { connect as connectTcp, type Socket } from "node:net";
import { performance } from "node:perf_hooks";
import { connect as connectTls } from "node:tls";

import { AVOID_MS } from "./attempts.js";
import { AnswerReader } from "./http1.js";
import type { CheckedSettings, Target } from "./settings.js";

/** What was met in place of an answer. */
export type NoAnswer = "broken" | "late" | "failed";

/** One connection. A call has it to itself while it uses it. */
export class Connection {
  usedMs = 0;
  /** Whether the host has closed it, or sent what nobody asked for. */
  isStale = false;
  private reader: AnswerReader | undefined;
  private give: ((met: AnswerReader | NoAnswer) => void) | undefined;

  constructor(private readonly socket: Socket) {
    socket.on("data", (data) => this.received(data));
    socket.on("end", () => this.ended());
    // Without an end before it, the answer is not whole, whatever its length was to be.
    socket.on("close", () => this.broke());
    socket.on("error", () => this.broke());
  }

  /** Send a request. Resolves to its whole answer, or to what was met by the deadline. */
  exchange(request: string, leftMs: number): Promise<AnswerReader | NoAnswer> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.give?.("late"), Math.max(leftMs, 0));
      this.give = (met) => {
        clearTimeout(timer);
        this.reader = this.give = undefined;
        resolve(met);
      };
      this.reader = new AnswerReader();
      if (this.isStale) this.give("broken");
      else this.socket.write(request);
    });
  }

  close(): void {
    this.isStale = true;
    this.socket.destroy();
  }

  private received(data: Buffer): void {
    if (this.reader === undefined) {
      // Nobody asked for it, and more of it would keep the process busy.
      this.close();
      return;
    }
    try {
      if (this.reader.feed(data)) this.give?.(this.reader);
    } catch {
      this.give?.("failed");
    }
  }

  private ended(): void {
    this.isStale = true;
    if (this.reader !== undefined) this.give?.(this.reader.end() ? this.reader : "broken");
  }

  private broke(): void {
    this.isStale = true;
    this.give?.("broken");
  }
}

/** The connections to one host, the one used last taken first. */
export class HostConnections {
  private readonly kept: Connection[] = [];
  private readonly waiting: Array<(hasPlace: boolean) => void> = [];
  private freeCount: number;
  private addresses: string[] = [];
  private nextAddress = 0;
  // When an address could not be reached. One is left out for a second.
  private readonly failedMs = new Map<string, number>();
  private resolving: Promise<void> | undefined;
  private resolvedMs = -Infinity;
  private isClosed = false;

  constructor(
    readonly target: Target,
    private readonly settings: CheckedSettings,
  ) {
    this.freeCount = settings.connectionsMax;
    if (target.isAddress) this.addresses = [target.host];
  }

  /** Wait until one connection more may be in use. Resolves to false if that is after the deadline. */
  takePlace(deadlineMs: number): Promise<boolean> | true {
    if (this.freeCount >= 1) {
      this.freeCount -= 1;
      return true;
    }
    return new Promise((resolve) => {
      const give = (hasPlace: boolean): void => {
        clearTimeout(timer);
        resolve(hasPlace);
      };
      const timer = setTimeout(
        () => {
          this.waiting.splice(this.waiting.indexOf(give), 1);
          resolve(false);
        },
        Math.max(deadlineMs - performance.now(), 0),
      );
      this.waiting.push(give);
    });
  }

  givePlace(): void {
    const next = this.waiting.shift();
    if (next === undefined) this.freeCount += 1;
    else next(true);
  }

  /** Returns a kept connection that can be used. */
  takeKept(): Connection | undefined {
    for (let kept = this.kept.pop(); kept !== undefined; kept = this.kept.pop()) {
      if (!kept.isStale && performance.now() - kept.usedMs < this.settings.idleMs) return kept;
      kept.close();
    }
    return undefined;
  }

  keep(connection: Connection): void {
    if (this.isClosed) {
      connection.close();
      return;
    }
    const nowMs = (connection.usedMs = performance.now());
    this.kept.push(connection);
    // The longest unused one is first.
    while (this.kept[0] !== undefined && nowMs - this.kept[0].usedMs >= this.settings.idleMs)
      this.kept.shift()?.close();
    this.resolveSometimes();
  }

  /** Resolves to a new connection; to "refused" if there is none, to "late" if the deadline has passed. */
  async connect(deadlineMs: number): Promise<Connection | "refused" | "late"> {
    const untilMs = Math.min(performance.now() + this.settings.connectTimeoutMs, deadlineMs);
    this.resolveSometimes();
    if (this.addresses.length === 0) await this.resolvedBy(untilMs);
    const address = this.takeAddress();
    const made = address === undefined ? undefined : await this.make(address, this.target, untilMs);
    if (made !== undefined) return made;
    if (address !== undefined) this.failedMs.set(address, performance.now());
    this.resolvedMs = -Infinity;
    return performance.now() < deadlineMs ? "refused" : "late";
  }

  close(): void {
    this.isClosed = true;
    for (const connection of this.kept.splice(0)) connection.close();
  }

  /** Returns the next address; one that failed if all have. */
  private takeAddress(): string | undefined {
    const { addresses } = this;
    const nowMs = performance.now();
    const first = this.nextAddress + 1;
    for (let next = first; next < first + addresses.length; next += 1) {
      const address = addresses[next % addresses.length];
      if (address === undefined || nowMs - (this.failedMs.get(address) ?? -Infinity) < AVOID_MS) continue;
      this.nextAddress = next;
      return address;
    }
    this.nextAddress = first;
    return addresses[first % addresses.length];
  }

  private make(address: string, target: Target, untilMs: number): Promise<Connection | undefined> {
    return new Promise((resolve) => {
      const { tls: secureContext } = this.settings;
      const to = { host: address, port: target.port, noDelay: true };
      const socket =
        target.isTls && secureContext !== undefined
          ? connectTls({
              ...to,
              secureContext,
              ALPNProtocols: ["http/1.1"],
              ...(target.isAddress ? {} : { servername: target.host }),
            })
          : connectTcp(to);
      let isOver = false;
      const give = (made: Connection | undefined): void => {
        if (isOver) return;
        isOver = true;
        clearTimeout(timer);
        socket.off("error", failed);
        if (made === undefined) {
          socket.on("error", () => undefined);
          socket.destroy();
        }
        resolve(made);
      };
      const failed = (): void => give(undefined);
      // After a time in which the loop stood still, timers come before the news of sockets: a connection that was made
      // long ago would count as one that could not be made. So look at the sockets once more.
      const timer = setTimeout(() => setImmediate(failed), Math.max(untilMs - performance.now(), 0));
      socket.on("error", failed);
      socket.once(target.isTls ? "secureConnect" : "connect", () => give(new Connection(socket)));
    });
  }

  /** Resolve the name in the background: at the first call, every `resolve_s`, and after a failure. */
  private resolveSometimes(): void {
    const { resolveMs } = this.settings;
    if (this.target.isAddress || this.resolving !== undefined || performance.now() - this.resolvedMs < resolveMs)
      return;
    this.resolving = lookup(this.target.host, { all: true })
      .then((found) => {
        if (found.length > 0) this.addresses = found.map(({ address }) => address);
        for (const address of this.failedMs.keys()) {
          if (!this.addresses.includes(address)) this.failedMs.delete(address);
        }
      })
      .catch(() => undefined)
      .finally(() => {
        this.resolvedMs = performance.now();
        this.resolving = undefined;
      });
  }

  private async resolvedBy(untilMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const tooLate = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, Math.max(untilMs - performance.now(), 0));
    });
    await Promise.race([this.resolving, tooLate]);
    clearTimeout(timer);
  }
}
