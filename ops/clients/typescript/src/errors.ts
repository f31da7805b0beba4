// The errors of the client. There is none for a service that does not answer: the caller gets a stand-in decision.

/** The request is wrong: correct it. No text of it holds a value of the payment. */
export class WrongRequest extends Error {
  override readonly name = "WrongRequest";

  /** `field` names the wrong field, or is empty; `code` is the service's, or "not_sent". */
  constructor(
    readonly detail: string,
    readonly field = "",
    readonly code = "not_sent",
    readonly status = 0,
  ) {
    super(field ? `${field}: ${detail}` : detail);
  }
}

/** A setting or a policy is wrong. `where` is its path, such as `limits[1].amount_over.EUR`. */
export class WrongSettings extends Error {
  override readonly name = "WrongSettings";

  constructor(
    readonly where: string,
    detail: string,
  ) {
    super(where ? `${where}: ${detail}` : detail);
  }
}
