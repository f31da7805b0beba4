// Client of Paywarden, the fraud scoring service. ops/clients/SPECIFICATION.md says what it does, rule by rule.

export { ACTIONS, type Action, type Cause, type Decision } from "./answers.js";
export { Client, VERSION, type CallOptions } from "./client.js";
export { WrongRequest, WrongSettings } from "./errors.js";
export type { Payment, Value } from "./payments.js";
export type { End } from "./reconciling.js";
export { routeOf } from "./routing.js";
export type { Hooks, Operation, Settings } from "./settings.js";
export { StandInPolicy } from "./stand-in.js";
