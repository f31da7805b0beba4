// What a client is made with: the table of the specification.

import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { createSecureContext, type SecureContext } from "node:tls";

import type { Cause, Decision } from "./answers.js";
import { DEADLINE_MS_MAX } from "./attempts.js";
import { WrongSettings } from "./errors.js";
import type { End } from "./reconciling.js";
import { StandInPolicy } from "./stand-in.js";

const URLS_MAX = 16;
const ROUTE_KEY_BYTES_MIN = 16;
const TOKEN = /^[\x21-\x7e]{1,8192}$/;
const URL_PARTS = /^(https?):\/\/([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::([0-9]{1,5}))?((?:\/[A-Za-z0-9._~%-]*)*)$/;

export type Operation = "score" | "shadow" | "reconcile";

/** Functions that the client calls; they must be quick. An error of theirs is dropped. */
export interface Hooks {
  /** For metrics, once for each call. */
  readonly onCall?: (
    operation: Operation,
    outcome: "answered" | "refused" | Cause,
    seconds: number,
    attempts: number,
  ) => void;
  /** The end of a stand-in, with the service's decision or null. */
  readonly onReconciled?: (standIn: Decision, decision: Decision | null, end: End) => void;
  /** The caller's own decision beside the service's, or beside null and the cause. */
  readonly onShadow?: (own: unknown, decision: Decision | null, cause: "" | "refused" | Cause) => void;
}

export interface Settings {
  readonly urls: string | readonly string[];
  readonly deadline_ms?: number;
  readonly token?: string | (() => string);
  readonly route_key?: Uint8Array;
  readonly policy?: StandInPolicy;
  readonly connections_max?: number;
  readonly idle_ms?: number;
  readonly connect_timeout_ms?: number;
  readonly resolve_s?: number;
  readonly queue_max?: number;
  readonly shadow_max?: number;
  readonly cards_max?: number;
  /** Files. */
  readonly ca?: string;
  readonly certificate?: string;
  readonly key?: string;
}

/** A URL, taken apart. */
export interface Target {
  readonly host: string;
  readonly isAddress: boolean;
  readonly port: number;
  readonly path: string;
  readonly authority: string;
  readonly isTls: boolean;
}

/** The settings, checked, with their defaults. */
export interface CheckedSettings {
  readonly urls: readonly string[];
  readonly targets: readonly Target[];
  readonly deadlineMs: number;
  readonly token: string | (() => string) | undefined;
  readonly routeKey: Uint8Array | undefined;
  readonly policy: StandInPolicy;
  readonly connectionsMax: number;
  readonly idleMs: number;
  readonly connectTimeoutMs: number;
  readonly resolveMs: number;
  readonly queueMax: number;
  readonly shadowMax: number;
  readonly cardsMax: number;
  readonly tls: SecureContext | undefined;
}

/** Throws WrongSettings, with the name of the setting. */
export function checked(settings: Settings): CheckedSettings {
  const given = typeof settings.urls === "string" ? [settings.urls] : settings.urls;
  if (given.length < 1 || given.length > URLS_MAX || new Set(given).size < given.length) {
    throw new WrongSettings("urls", `wanted 1 to ${URLS_MAX} different ones`);
  }
  const urls = given.map((url) => url.replace(/\/+$/, ""));
  const targets = urls.map(targetOf);
  if (typeof settings.token === "string") requireToken(settings.token);
  if (settings.route_key !== undefined && settings.route_key.length < ROUTE_KEY_BYTES_MIN) {
    throw new WrongSettings("route_key", `wanted at least ${ROUTE_KEY_BYTES_MIN} bytes`);
  }
  if ((settings.certificate === undefined) !== (settings.key === undefined)) {
    throw new WrongSettings("key", "wanted with a certificate, and only with one");
  }
  const number = (name: "deadline_ms" | keyof typeof DEFAULTS, least: number, most: number): number => {
    const value = settings[name] ?? (name === "deadline_ms" ? 40 : DEFAULTS[name]);
    if (!(value >= least && value <= most)) throw new WrongSettings(name, `wanted ${least} to ${most}, got ${value}`);
    return value;
  };
  return {
    urls,
    targets,
    deadlineMs: number("deadline_ms", 1, DEADLINE_MS_MAX),
    token: settings.token,
    routeKey: settings.route_key,
    policy: settings.policy ?? StandInPolicy.reviewAll,
    connectionsMax: number("connections_max", 1e-3, 1e9),
    idleMs: number("idle_ms", 1e-3, 1e9),
    connectTimeoutMs: number("connect_timeout_ms", 1e-3, 1e9),
    resolveMs: 1000 * number("resolve_s", 1e-3, 1e6),
    queueMax: number("queue_max", 0, 1e9),
    shadowMax: number("shadow_max", 1e-3, 1e9),
    cardsMax: number("cards_max", 1e-3, 1e9),
    tls: targets.some((target) => target.isTls) ? tlsOf(settings) : undefined,
  };
}

const DEFAULTS = {
  connections_max: 64,
  idle_ms: 800,
  connect_timeout_ms: 200,
  resolve_s: 5,
  queue_max: 1000,
  shadow_max: 100,
  cards_max: 100_000,
};

/** Returns the token. Throws WrongSettings, without the token in its text. */
export function requireToken(token: string): string {
  if (!TOKEN.test(token)) {
    throw new WrongSettings("token", "wanted 1 to 8192 printable characters of ASCII without spaces");
  }
  return token;
}

function targetOf(url: string): Target {
  const match = URL_PARTS.exec(url);
  const port = Number(match?.[3] ?? (match?.[1] === "https" ? 443 : 80));
  if (match === null || port < 1 || port > 65_535) {
    throw new WrongSettings("urls", "wanted http://host:port or https://host:port, and perhaps a path");
  }
  const name = match[2] ?? "";
  const host = name.startsWith("[") ? name.slice(1, -1) : name;
  return {
    host,
    isAddress: isIP(host) !== 0,
    port,
    path: `${match[4] ?? ""}/v1/score`,
    authority: match[3] === undefined ? name : `${name}:${match[3]}`,
    isTls: match[1] === "https",
  };
}

function tlsOf(settings: Settings): SecureContext {
  const read = (name: "ca" | "certificate" | "key"): { value?: Buffer } => {
    const file = settings[name];
    if (file === undefined) return {};
    try {
      return { value: readFileSync(file) };
    } catch {
      throw new WrongSettings(name, "wanted a readable file");
    }
  };
  const [ca, cert, key] = [read("ca").value, read("certificate").value, read("key").value];
  try {
    return createSecureContext({ ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }) });
  } catch {
    throw new WrongSettings(
      cert === undefined ? "ca" : "certificate",
      "wanted files of certificates, and a key that fits",
    );
  }
}
